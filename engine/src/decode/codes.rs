//! Series of a table by the dictionary codes of its text columns: found by two small look-ups instead of by hashing.

use ahash::{HashMap, HashMapExt};

/// Entries of a table that is indexed by codes; beyond, codes are looked up by their hash.
const ENTRIES_MAX: usize = 1 << 20;

/// Codes of entity type, metric and unit, and the index of the reading's column; -1 where there is no text.
pub(super) type Kind = [i32; 4];

/// What is known of series, by the codes of their entity and of everything else.
pub(super) struct SeriesByCodes<T> {
    kinds: KindNumbers,
    /// By kind and entity.
    places: HashMap<(u32, i32), u32>,
    /// The same by kind, then by entity + 1; empty where there would be too many. `NOWHERE` is not known yet.
    direct: Vec<Vec<u32>>,
    direct_entries: usize,
    entities: usize,
    found: Vec<T>,
}

const NOWHERE: u32 = u32::MAX;

impl<T> SeriesByCodes<T> {
    /// For codes below these sizes.
    pub(super) fn new(entities: usize, kinds: [usize; 4]) -> Self {
        Self {
            kinds: KindNumbers::new(kinds),
            places: HashMap::new(),
            direct: Vec::new(),
            direct_entries: 0,
            entities,
            found: Vec::new(),
        }
    }

    /// What is known of a series; `find` is asked once for each.
    pub(super) fn get_or_insert_with(&mut self, entity: i32, kind: Kind, find: impl FnOnce() -> T) -> &T {
        let kind = self.kinds.number(kind);
        if kind as usize == self.direct.len() {
            let entries = self.entities + 1;
            let fits = self.direct_entries + entries <= ENTRIES_MAX;
            self.direct_entries += if fits { entries } else { 0 };
            self.direct.push(if fits { vec![NOWHERE; entries] } else { Vec::new() });
        }
        let place = match self.direct[kind as usize].get_mut((entity + 1) as usize) {
            Some(place) => place,
            None => self.places.entry((kind, entity)).or_insert(NOWHERE),
        };
        if *place == NOWHERE {
            *place = self.found.len() as u32;
            self.found.push(find());
        }
        &self.found[*place as usize]
    }
}

/// Numbers kinds in the order in which they come.
struct KindNumbers {
    sizes: [usize; 4],
    numbers: HashMap<Kind, u32>,
    /// The same by the codes as digits of a number; empty where there would be too many.
    direct: Vec<u32>,
    count: u32,
}

impl KindNumbers {
    fn new(sizes: [usize; 4]) -> Self {
        let sizes = sizes.map(|size| size + 1);
        let all = sizes.iter().try_fold(1usize, |all, size| all.checked_mul(*size));
        let direct = match all {
            Some(all) if all <= ENTRIES_MAX / 16 => vec![NOWHERE; all],
            _ => Vec::new(),
        };
        Self { sizes, numbers: HashMap::new(), direct, count: 0 }
    }

    fn number(&mut self, kind: Kind) -> u32 {
        let number = if self.direct.is_empty() {
            self.numbers.entry(kind).or_insert(NOWHERE)
        } else {
            let digits = kind.iter().zip(self.sizes);
            let at = digits.fold(0, |at, (code, size)| at * size + (code + 1) as usize);
            &mut self.direct[at]
        };
        if *number == NOWHERE {
            *number = self.count;
            self.count += 1;
        }
        *number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small tables are indexed, large ones hashed: both find what was put in, and ask once.
    #[test]
    fn every_series_is_found_by_its_codes() {
        for (entities, kinds) in [(5, [2, 3, 2, 1]), (ENTRIES_MAX, [1 << 20, 1 << 20, 1 << 20, 1])] {
            let mut series = SeriesByCodes::new(entities, kinds);
            let mut asked = 0;
            for _ in 0..2 {
                for entity in -1..5 {
                    for kind in 0..2 * 3 * 2 {
                        let kind = [kind % 2, kind / 2 % 3 - 1, kind / 6 - 1, 0];
                        let found = series.get_or_insert_with(entity, kind, || {
                            asked += 1;
                            (entity, kind)
                        });
                        assert_eq!(*found, (entity, kind));
                    }
                }
            }
            assert_eq!(asked, 6 * 12);
        }
    }
}
