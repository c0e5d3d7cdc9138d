//! Compressed bodies, decoded as a stream up to an absolute limit.

use std::{
    io::{BufRead, BufReader, Read},
    str::FromStr,
};

use bytes::Bytes;

use crate::{Error, ErrorKind, Result};

/// zstd windows beyond this are refused: they would be allocated before a byte is seen.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentEncoding {
    Identity,
    Gzip,
    Zstd,
}

impl FromStr for ContentEncoding {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Ok(Self::Identity),
            "gzip" | "x-gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            other => Err(Error::invalid(format!(
                "Content-Encoding `{other}` is not supported; valid are gzip, zstd"
            ))),
        }
    }
}

/// Decompresses a body.
///
/// # Errors
/// [`ErrorKind::TooLarge`] as soon as more than `limit` bytes come out; [`ErrorKind::Invalid`] for damaged data.
pub fn decompress(body: Bytes, encoding: ContentEncoding, limit: usize) -> Result<Bytes> {
    let mut out = Vec::new();
    let read = match encoding {
        ContentEncoding::Identity => {
            return if body.len() > limit { Err(too_large(limit)) } else { Ok(body) };
        }
        ContentEncoding::Gzip => {
            flate2::read::MultiGzDecoder::new(&body[..]).take(limit as u64 + 1).read_to_end(&mut out)
        }
        ContentEncoding::Zstd => zstd::stream::read::Decoder::new(&body[..]).and_then(|mut decoder| {
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            decoder.take(limit as u64 + 1).read_to_end(&mut out)
        }),
    };
    read.map_err(|error| Error::invalid(format!("the body does not decompress: {error}")))?;
    if out.len() > limit {
        return Err(too_large(limit));
    }
    Ok(Bytes::from(out))
}

fn too_large(limit: usize) -> Error {
    let limit = wattlake_config::ByteCount(limit as u64);
    Error::new(
        ErrorKind::TooLarge,
        format!("the decoded body exceeds ingest.max_body_bytes = {limit}; send smaller batches"),
    )
}

/// Reads a file, decompressing gzip and zstd by their first bytes.
///
/// # Errors
/// When the first bytes cannot be read.
pub(crate) fn decompressed(source: impl Read + Send + 'static) -> std::io::Result<Box<dyn Read + Send>> {
    let mut reader = BufReader::with_capacity(1 << 20, source);
    Ok(match reader.fill_buf()? {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(reader)?),
        _ => Box::new(reader),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A small body may ask for a window of gigabytes.
    #[test]
    fn a_large_zstd_window_is_refused() {
        let compress = |window_log| {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.long_distance_matching(true).unwrap();
            encoder.window_log(window_log).unwrap();
            encoder.write_all(&[b'x'; 1000]).unwrap();
            Bytes::from(encoder.finish().unwrap())
        };
        let run = |window_log| decompress(compress(window_log), ContentEncoding::Zstd, 1 << 20);
        assert_eq!(run(ZSTD_WINDOW_LOG_MAX).unwrap().len(), 1000);
        let error = run(ZSTD_WINDOW_LOG_MAX + 1).unwrap_err();
        assert!(error.message.contains("does not decompress"), "{error}");
    }
}
