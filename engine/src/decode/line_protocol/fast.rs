//! The short way of a line: a known series, plain numbers, perhaps a quality, a plain timestamp. Whatever else a line holds, or when anything
//! about it is wrong, the line is left to the long way untouched.

use memchr::{memchr, memchr2};
use parking_lot::RwLockReadGuard;
use wattlake_catalog::{Quality, SiteId};

use crate::{
    TimePrecision,
    ingest::{Collector, KnownLines, LineSeriesCache, SeriesSlot},
};

/// Fields of a line that are taken the short way.
const FIELDS_MAX: usize = 16;

pub(super) struct FastLines<'a> {
    cache: &'a LineSeriesCache,
    known: RwLockReadGuard<'a, KnownLines>,
    precision: TimePrecision,
    allowed_sites: Vec<SiteId>,
}

impl<'a> FastLines<'a> {
    pub(super) fn new(
        cache: &'a LineSeriesCache,
        precision: TimePrecision,
        allowed_sites: &[SiteId],
    ) -> Self {
        Self { cache, known: cache.read(), precision, allowed_sites: allowed_sites.to_vec() }
    }

    /// Takes a line, or answers `false` having done nothing.
    pub(super) fn decode(&self, number: u64, line: &[u8], collector: &mut Collector) -> bool {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // An escape in the key ends the search too: the byte there is then no space.
        let Some(key_end) = memchr2(b' ', b'\\', line).filter(|at| line[*at] == b' ') else { return false };
        let (key, rest) = (&line[..key_end], &line[key_end + 1..]);
        let Some(fields_end) = memchr(b' ', rest) else { return false };
        let Some(ts) = digits(&rest[fields_end + 1..]).and_then(|n| self.precision.to_micros(n)) else {
            return false;
        };
        let mut readings = [(None, 0.0); FIELDS_MAX];
        let mut count = 0;
        let mut quality = Quality::Good;
        let key_hash = self.cache.hash_key(key);
        let mut fields = &rest[..fields_end];
        loop {
            let Some(name_end) = memchr(b'=', fields) else { return false };
            let (name, value) = (&fields[..name_end], &fields[name_end + 1..]);
            let value_end = memchr(b',', value).unwrap_or(value.len());
            if name == b"quality" {
                let stated = Quality::ALL.iter().find(|q| is_quoted(&value[..value_end], q.as_str()));
                let Some(stated) = stated else { return false };
                quality = *stated;
                match value.get(value_end + 1..) {
                    Some(more) => fields = more,
                    None => break,
                }
                continue;
            }
            let Some(number) = decimal(&value[..value_end]) else { return false };
            let hash = self.cache.hash_field(key_hash, name);
            let Some(series) = self.known.find(hash, key, name) else { return false };
            let is_allowed = self.allowed_sites.is_empty() || self.allowed_sites.contains(&series.site);
            if !is_allowed || count == FIELDS_MAX {
                return false;
            }
            readings[count] = (Some(SeriesSlot::of_channel(series.channel, series.conversion)), number);
            count += 1;
            match value.get(value_end + 1..) {
                Some(more) => fields = more,
                None => break,
            }
        }
        for (series, value) in &readings[..count] {
            if let Some(series) = series {
                collector.push_value(number, *series, ts, *value, quality, None);
            }
        }
        true
    }
}

fn is_quoted(text: &[u8], inner: &str) -> bool {
    text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")) == Some(inner.as_bytes())
}

/// A whole number without sign that fits an `i64`.
fn digits(text: &[u8]) -> Option<i64> {
    if text.is_empty() || text.len() > 19 {
        return None;
    }
    let mut n: u64 = 0;
    for byte in text {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        n = n * 10 + u64::from(digit);
    }
    i64::try_from(n).ok()
}

const POWERS_OF_TEN: [f64; 16] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];

/// A decimal number of at most 15 digits, or an integer with `i` or `u`: exact, because both the digits and the power of
/// ten are exact in an `f64` and one division rounds once (W. D. Clinger, How to Read Floating Point Numbers Accurately,
/// 1990).
fn decimal(text: &[u8]) -> Option<f64> {
    let (negative, text) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        _ => (false, text),
    };
    let (mut n, mut count, mut point) = (0u64, 0, None);
    for (i, byte) in text.iter().enumerate() {
        match byte {
            b'0'..=b'9' => {
                n = n * 10 + u64::from(byte - b'0');
                count += 1;
                if count > 15 {
                    return None;
                }
            }
            b'.' if point.is_none() => point = Some(count),
            b'i' | b'u' if i + 1 == text.len() && point.is_none() && !(negative && *byte == b'u') => {}
            _ => return None,
        }
    }
    if count == 0 {
        return None;
    }
    let value = n as f64 / POWERS_OF_TEN[count - point.unwrap_or(count)];
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What the short way reads is what the standard library reads, to the last bit.
        #[test]
        fn decimals_are_exact(text in "-?[0-9]{0,9}(\\.[0-9]{0,8})?") {
            if let Some(value) = decimal(text.as_bytes()) {
                let expected: f64 = text.parse().expect("a number for both");
                prop_assert_eq!(value.to_bits(), expected.to_bits());
            }
        }

        #[test]
        fn other_texts_are_left_alone(text in "[-+0-9.eEiuxtTf\" ]{0,20}") {
            if let Some(value) = decimal(text.as_bytes()) {
                let plain = text.trim_end_matches(['i', 'u']);
                prop_assert_eq!(Ok(value.to_bits()), plain.parse::<f64>().map(f64::to_bits));
            }
        }
    }

    #[test]
    fn only_whole_numbers_are_times() {
        assert_eq!(digits(b"1767225600000000000"), Some(1_767_225_600_000_000_000));
        for text in ["", "-1", "1.0", "99999999999999999999", "9999999999999999999", "12 ", "1e3"] {
            assert_eq!(digits(text.as_bytes()), None, "{text}");
        }
    }
}
