//! ROLL-1, no double counting: which entities of a meter tree count. Plain data in and out.

use std::collections::BTreeSet;

use wattlake_catalog::{Category, EntityId, Fleet};

/// How a tree is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The highest node with readings of a category counts, and nothing of that category below it.
    Auto,
    /// Each meter's own readings only, without those below it: only the roots of the scope are asked.
    Own,
    /// Only the lowest entities count: sources, and meters without sources and children of their category.
    Leaves,
    /// What a meter shows beyond what all of its children of the same category do together, each resolved as in `Auto`.
    Residual,
}

/// An entity that counts, for the meter and category that it counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Contribution {
    pub entity: EntityId,
    pub meter: EntityId,
    pub category: Category,
    /// It is taken away.
    pub is_minus: bool,
}

/// Finds the entities that count below (and at) the roots; `has_readings` says who has any in the bucket in question.
pub(crate) fn resolve(
    fleet: &Fleet,
    roots: &[EntityId],
    mode: Mode,
    has_readings: impl Fn(EntityId) -> bool,
) -> Vec<Contribution> {
    let mut found = Vec::new();
    let tree = Tree { fleet, has_readings: &has_readings };
    for root in roots {
        match mode {
            Mode::Auto => tree.auto(*root, &BTreeSet::new(), &mut found),
            Mode::Own => tree.own(*root, &mut found),
            Mode::Leaves => {
                tree.leaves(*root, &mut found);
            }
            Mode::Residual => {
                for meter in fleet.subtree(*root) {
                    tree.residual(meter, &mut found);
                }
            }
        }
    }
    found
}

struct Tree<'a, F> {
    fleet: &'a Fleet,
    has_readings: &'a F,
}

impl<F: Fn(EntityId) -> bool> Tree<'_, F> {
    fn own(&self, id: EntityId, found: &mut Vec<Contribution>) {
        if let Some(meter) = self.fleet.meter(id)
            && (self.has_readings)(id)
        {
            found.push(Contribution { entity: id, meter: id, category: meter.category, is_minus: false });
        }
    }

    /// The sources of a meter that have readings.
    fn sources(&self, id: EntityId, category: Category) -> Vec<Contribution> {
        let sources = self.fleet.sources_of(id).iter().filter(|source| (self.has_readings)(**source));
        sources.map(|source| Contribution { entity: *source, meter: id, category, is_minus: false }).collect()
    }

    /// `covered` holds the categories that a node above already counts for.
    fn auto(&self, id: EntityId, covered: &BTreeSet<Category>, found: &mut Vec<Contribution>) {
        let Some(meter) = self.fleet.meter(id) else { return };
        let mut covered = covered.clone();
        if !covered.contains(&meter.category) {
            let before = found.len();
            self.own(id, found);
            if found.len() == before {
                found.extend(self.sources(id, meter.category));
            }
            if found.len() > before {
                covered.insert(meter.category);
            }
        }
        for child in self.fleet.children(id) {
            self.auto(*child, &covered, found);
        }
    }

    /// Answers the categories that something at or below the node counts for.
    fn leaves(&self, id: EntityId, found: &mut Vec<Contribution>) -> BTreeSet<Category> {
        let Some(meter) = self.fleet.meter(id) else { return BTreeSet::new() };
        let mut counted = BTreeSet::new();
        for child in self.fleet.children(id) {
            counted.extend(self.leaves(*child, found));
        }
        let sources = self.sources(id, meter.category);
        if !sources.is_empty() {
            counted.insert(meter.category);
            found.extend(sources);
        } else if !counted.contains(&meter.category) && (self.has_readings)(id) {
            counted.insert(meter.category);
            found.push(Contribution { entity: id, meter: id, category: meter.category, is_minus: false });
        }
        counted
    }

    /// Only of a meter with readings where each of its children of the same category, of which there are some, counts for something.
    fn residual(&self, id: EntityId, found: &mut Vec<Contribution>) {
        let Some(meter) = self.fleet.meter(id) else { return };
        let category = meter.category;
        let (mut parts, mut has_children) = (Vec::new(), false);
        self.own(id, &mut parts);
        if parts.is_empty() {
            return;
        }
        for child in self.fleet.children(id) {
            let mut below = Vec::new();
            self.auto(*child, &BTreeSet::new(), &mut below);
            below.retain(|part| part.category == category);
            if self.fleet.meter(*child).is_some_and(|child| child.category == category) {
                if below.is_empty() {
                    return;
                }
                has_children = true;
            }
            parts.extend(below.into_iter().map(|part| Contribution { meter: id, is_minus: true, ..part }));
        }
        if has_children {
            found.extend(parts);
        }
    }
}
