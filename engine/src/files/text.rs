//! Lines of a text, counted and bounded.

use std::io::BufRead;

use crate::{Error, Result};

/// Bytes of a line.
const LINE_BYTES_MAX: usize = 4 << 20;

/// Lines of a text with their numbers.
pub(super) struct Lines<R> {
    source: R,
    buffer: Vec<u8>,
    /// 1-based, of the line that was read last.
    pub number: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, buffer: Vec::new(), number: 0 }
    }

    /// The next line without its end and without spaces around it; `None`: there are no more.
    ///
    /// # Errors
    /// When it cannot be read, is too long or is no text.
    pub(super) fn next(&mut self) -> Result<Option<&str>> {
        self.buffer.clear();
        let most = LINE_BYTES_MAX as u64 + 1;
        let read = std::io::Read::take(&mut self.source, most).read_until(b'\n', &mut self.buffer);
        if read.map_err(|error| Error::invalid(format!("cannot be read: {error}")))? == 0 {
            return Ok(None);
        }
        self.number += 1;
        if self.buffer.len() > LINE_BYTES_MAX {
            return Err(Error::invalid(format!(
                "line {} is longer than {LINE_BYTES_MAX} bytes",
                self.number
            )));
        }
        match std::str::from_utf8(&self.buffer) {
            Ok(text) => Ok(Some(text.trim())),
            Err(_) => Err(Error::invalid(format!("line {} is no UTF-8 text", self.number))),
        }
    }
}

/// A number as a file writes it; `decimal` is its point.
pub(super) fn number(text: &str, decimal: char) -> Option<f64> {
    let text = text.trim();
    let found = match decimal {
        '.' => text.parse::<f64>(),
        _ if text.contains('.') => return None,
        _ => text.replace(decimal, ".").parse(),
    };
    found.ok().filter(|number| number.is_finite())
}
