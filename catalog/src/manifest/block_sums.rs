//! Checksums of the blocks of a file: what a reader of a part can be sure of.

use std::{ops::Range, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The CRC-32C of each block of 64 KiB of a file; the last one may be shorter. Empty for files of which none was kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockSums(Arc<[u32]>);

impl BlockSums {
    pub const BLOCK_BYTES: u64 = 64 << 10;

    /// From the sums of all blocks, in order.
    pub fn new(sums: impl IntoIterator<Item = u32>) -> Self {
        Self(sums.into_iter().collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sums of the blocks that a range of whole blocks covers.
    pub fn of(&self, range: &Range<u64>) -> &[u32] {
        let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(self.0.len());
        &self.0[index(range.start / Self::BLOCK_BYTES)..index(range.end.div_ceil(Self::BLOCK_BYTES))]
    }

    /// Base64 of the sums, little-endian.
    pub(crate) fn to_text(&self) -> String {
        STANDARD.encode(self.0.iter().flat_map(|sum| sum.to_le_bytes()).collect::<Vec<_>>())
    }

    /// `None` for a text that is not of [`BlockSums::to_text`].
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text).ok()?;
        let (words, rest) = bytes.as_chunks::<4>();
        rest.is_empty().then(|| Self::new(words.iter().map(|word| u32::from_le_bytes(*word))))
    }
}

impl Serialize for BlockSums {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_text())
    }
}

impl<'de> Deserialize<'de> for BlockSums {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_text(&text).ok_or_else(|| de::Error::custom("block sums are not base64 of 32-bit numbers"))
    }
}
