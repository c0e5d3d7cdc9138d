//! Files of vendors and utilities, as they are downloaded.
//!
//! Each reader takes readings out of one format, with the line that they stand in, and says of each line that it cannot take why; nothing
//! else of the file is lost for it. What comes out are tables in the form that Arrow bodies have, so that a file goes the way of any
//! other import. Memory goes with the number of series and with what a reader has to hold back, never with the size of the file.
//!
//! Which format a file has is [found out](detect) by its content. Folders and archives are [opened](container).

mod container;
mod detect;
mod green_button;
mod influx;
mod local;
mod nem;
mod nisc;
mod profile;
mod rows;
mod sma;
mod solaredge;
mod text;

use std::{
    io::{BufRead, Read},
    str::FromStr,
    sync::Arc,
};

use jiff::tz::{Offset, TimeZone};

pub use container::{FoundFile, find_files};
pub use detect::FileFormat;
pub(crate) use influx::{AnnotatedCsv, Dump};
pub use local::DstPolicy;
pub use profile::Profile;
pub use rows::RefusedLine;
pub(crate) use rows::{FileRows, HINTS, MeterHint};

use crate::{Error, Result};

/// What a user says of a file that the file does not.
#[derive(Clone, Debug, Default)]
pub struct FileOptions {
    /// The zone of local times.
    pub zone: Option<TimeZone>,
    /// The zone of market data (NEM12) where it is not that of the market; its standard time holds all year.
    pub market_zone: Option<TimeZone>,
    pub dst: DstPolicy,
    /// The meter that readings are of, where the file names none.
    pub entity: Option<String>,
    /// Called so where nobody names it: the file's name without its ending.
    pub stem: String,
    /// How columns of a table are to be read.
    pub profile: Option<Arc<Profile>>,
}

impl FileOptions {
    fn entity(&self) -> &str {
        self.entity.as_deref().unwrap_or(&self.stem)
    }

    /// The zone of local times.
    fn zone_of_local_times(&self) -> Result<TimeZone> {
        self.zone.clone().ok_or_else(|| {
            Error::invalid(
                "its times are local and say no zone; name the zone of the site, for example --time-zone Europe/Berlin",
            )
        })
    }
}

/// Reads the name of a zone, or an offset from UTC such as `+10:00`.
///
/// # Errors
/// With an example.
pub fn parse_zone(text: &str) -> Result<TimeZone> {
    let offset = || {
        let sign = if text.starts_with('-') { -1 } else { 1 };
        let (hours, minutes) = text.strip_prefix(['+', '-'])?.split_once(':')?;
        let seconds = i32::from_str(hours).ok()? * 3600 + i32::from_str(minutes).ok()? * 60;
        Some(TimeZone::fixed(Offset::from_seconds(sign * seconds).ok()?))
    };
    offset().map_or_else(
        || {
            TimeZone::get(text).map_err(|_| {
                Error::invalid(format!("`{text}` is no zone; write for example Europe/Berlin or +10:00"))
            })
        },
        Ok,
    )
}

/// Takes readings out of a file.
trait RowReader: Send {
    /// Adds the readings of some more lines; `false`: there are none.
    ///
    /// # Errors
    /// When the file as a whole cannot be read any further.
    fn read(&mut self, rows: &mut FileRows) -> Result<bool>;
}

/// A file of a vendor or utility that is being read.
pub(crate) struct FileReader {
    reader: Box<dyn RowReader>,
    rows: FileRows,
    is_done: bool,
}

/// Readings of one table.
const ROWS_AT_ONCE: usize = 64 << 10;

impl FileReader {
    /// Starts to read a file whose bytes are decompressed already.
    ///
    /// # Errors
    /// When it is not of that format, or lacks what only the user knows.
    pub(crate) fn new(
        source: impl BufRead + Send + 'static,
        format: FileFormat,
        options: &FileOptions,
    ) -> Result<Self> {
        let reader: Box<dyn RowReader> = match format {
            FileFormat::Body(_) | FileFormat::AnnotatedCsv => {
                return Err(Error::internal("this format is read by the decoders of bodies"));
            }
            FileFormat::Nem => Box::new(nem::Reader::new(source, options)),
            FileFormat::GreenButton => Box::new(green_button::Reader::new(source, options)),
            FileFormat::SolarEdge => Box::new(solaredge::Reader::new(source, options)?),
            FileFormat::Sma => Box::new(sma::Reader::new(source, options)?),
            FileFormat::Nisc => Box::new(nisc::Reader::new(source, options)?),
            FileFormat::Profile(name) => {
                let profile = Profile::named(name)?;
                Box::new(profile::Reader::new(source, Arc::new(profile), options)?)
            }
            FileFormat::Mapped => {
                let profile =
                    options.profile.clone().ok_or_else(|| Error::internal("no mapping was given"))?;
                Box::new(profile::Reader::new(source, profile, options)?)
            }
        };
        Ok(Self { reader, rows: FileRows::default(), is_done: false })
    }

    /// The next readings; `None`: there are no more.
    ///
    /// # Errors
    /// As [`RowReader::read`].
    pub(crate) fn next(&mut self) -> Result<Option<&mut FileRows>> {
        while !self.is_done && self.rows.len() < ROWS_AT_ONCE && self.rows.refused().len() < ROWS_AT_ONCE {
            self.is_done = !self.reader.read(&mut self.rows)?;
        }
        let is_empty = self.rows.len() == 0 && self.rows.refused().is_empty();
        Ok((!is_empty).then_some(&mut self.rows))
    }
}

/// Text of any encoding that spreadsheets write, as UTF-8 without its mark.
fn utf8(source: impl Read + Send + 'static) -> impl Read + Send {
    encoding_rs_io::DecodeReaderBytesBuilder::new().utf8_passthru(true).strip_bom(true).build(source)
}

#[cfg(test)]
mod tests;
