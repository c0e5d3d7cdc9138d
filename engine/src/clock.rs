//! The one clock of the engine, so that tests can set the time.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

/// Where "now" comes from.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    #[default]
    System,
    /// A hand-set time, microseconds since 1970 UTC.
    Fixed(Arc<AtomicI64>),
    /// A time that another process sets: the first eight bytes of a file, microseconds since 1970 UTC, little-endian.
    #[cfg(feature = "failpoints")]
    File(Arc<std::fs::File>),
}

impl Clock {
    /// The clock in a file.
    #[cfg(feature = "failpoints")]
    pub fn file(path: &std::path::Path) -> std::io::Result<Self> {
        Ok(Self::File(Arc::new(std::fs::File::open(path)?)))
    }

    /// Whether it goes by itself; others may jump at any moment.
    pub(crate) fn is_system(&self) -> bool {
        matches!(self, Self::System)
    }

    /// Microseconds since 1970 UTC.
    pub fn now_micros(&self) -> i64 {
        match self {
            Self::System => jiff::Timestamp::now().as_microsecond(),
            Self::Fixed(at) => at.load(Ordering::Relaxed),
            #[cfg(feature = "failpoints")]
            Self::File(file) => {
                let mut bytes = [0; 8];
                match std::os::unix::fs::FileExt::read_exact_at(&**file, &mut bytes, 0) {
                    Ok(()) => i64::from_le_bytes(bytes),
                    Err(_) => jiff::Timestamp::now().as_microsecond(),
                }
            }
        }
    }
}
