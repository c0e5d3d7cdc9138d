//! Memory of queries: so much for each, and so much for all of them together.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use datafusion::{
    error::{DataFusionError, Result},
    execution::memory_pool::{
        FairSpillPool, MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation, human_readable_size,
    },
};

/// What all queries hold together.
#[derive(Debug)]
pub(super) struct SharedMemory {
    held: AtomicUsize,
    limit: usize,
}

impl SharedMemory {
    pub(super) fn new(limit: usize) -> Self {
        Self { held: AtomicUsize::new(0), limit }
    }

    fn take(&self, bytes: usize) -> Result<()> {
        let grown = self.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| {
            held.checked_add(bytes).filter(|held| *held <= self.limit)
        });
        grown.map(drop).map_err(|held| {
            DataFusionError::ResourcesExhausted(format!(
                "all queries together hold {} of {} (query.total_memory); try again when others are done",
                human_readable_size(held),
                human_readable_size(self.limit)
            ))
        })
    }

    fn give(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// Set when nobody waits for a query any more.
pub(super) type GivenUp = Arc<AtomicBool>;

/// The pool of one query. Operators that can spill share it fairly. One that was given up gets nothing more: some operators
/// work for minutes without looking whether they are wanted, but they all ask for memory.
#[derive(Debug)]
pub(super) struct QueryMemory {
    own: FairSpillPool,
    all: Arc<SharedMemory>,
    given_up: GivenUp,
}

impl QueryMemory {
    pub(super) fn new(limit: usize, all: Arc<SharedMemory>, given_up: GivenUp) -> Self {
        Self { own: FairSpillPool::new(limit), all, given_up }
    }
}

impl std::fmt::Display for QueryMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.own.fmt(f)
    }
}

impl MemoryPool for QueryMemory {
    fn name(&self) -> &str {
        self.own.name()
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.own.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.own.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.all.held.fetch_add(additional, Ordering::AcqRel);
        self.own.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.own.shrink(reservation, shrink);
        self.all.give(shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        if self.given_up.load(Ordering::Relaxed) {
            return Err(DataFusionError::ResourcesExhausted("the query was given up".to_owned()));
        }
        self.all.take(additional)?;
        self.own.try_grow(reservation, additional).inspect_err(|_| self.all.give(additional))
    }

    fn reserved(&self) -> usize {
        self.own.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.own.memory_limit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_bounded_alone_and_together_and_give_back_what_they_held() {
        let all = Arc::new(SharedMemory::new(150));
        let given_up = GivenUp::default();
        let pool = || Arc::new(QueryMemory::new(100, Arc::clone(&all), Arc::clone(&given_up))) as _;
        let pools: Vec<Arc<dyn MemoryPool>> = vec![pool(), pool()];
        let consumers: Vec<_> = pools.iter().map(|pool| MemoryConsumer::new("test").register(pool)).collect();
        let refused =
            |n: usize, bytes: usize| consumers[n].try_grow(bytes).expect_err("too much").to_string();
        consumers[0].try_grow(90).expect("fits");
        assert!(!refused(0, 20).contains("query.total_memory"), "its own limit");
        assert_eq!(all.held.load(Ordering::Relaxed), 90);
        consumers[1].try_grow(60).expect("fits");
        assert!(refused(1, 10).contains("query.total_memory"), "the limit of all");
        given_up.store(true, Ordering::Relaxed);
        consumers[1].shrink(50);
        assert!(refused(1, 1).contains("given up"));
        drop(consumers);
        assert_eq!(all.held.load(Ordering::Relaxed), 0);
    }
}
