//! Who may work when: so many queries at once, and so many of them for one token.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use wattlake_catalog::Access;

use crate::error::{ApiError, Kind, Result};

/// How long a query waits for its turn.
pub(super) const QUEUE_WAIT: Duration = Duration::from_secs(5);

/// Given back when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _of_token: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Drop for Turn {
    fn drop(&mut self) {
        metrics::gauge!("wattlake_queries_running").decrement(1);
    }
}

pub(super) struct Turns {
    all: Arc<Semaphore>,
    per_token: usize,
    /// Of tokens with queries at work or waiting.
    tokens: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Turns {
    pub(super) fn new(all: usize, per_token: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), per_token, tokens: Mutex::default() }
    }

    /// # Errors
    /// [`Kind::Overloaded`] when there is no turn within five seconds.
    pub(super) async fn take(&self, access: &Access) -> Result<Turn> {
        let of_token = self.of_token(&access.token_id);
        let refused = |what: &str| {
            metrics::counter!("wattlake_queries_refused_total").increment(1);
            ApiError::new(Kind::Overloaded, format!("too many queries at once ({what}); try again"))
        };
        let both = async {
            let of_token = of_token.acquire_owned().await;
            (of_token, Arc::clone(&self.all).acquire_owned().await)
        };
        match timeout(QUEUE_WAIT, both).await {
            Ok((Ok(of_token), Ok(of_all))) => {
                metrics::gauge!("wattlake_queries_running").increment(1);
                Ok(Turn { _of_token: of_token, _of_all: of_all })
            }
            _ if self.all.available_permits() == 0 => Err(refused("query.max_concurrent")),
            _ => Err(refused("query.max_concurrent_per_token")),
        }
    }

    fn of_token(&self, id: &str) -> Arc<Semaphore> {
        let mut tokens = self.tokens.lock();
        // Those that nobody holds are as good as new.
        tokens.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
        let semaphore =
            tokens.entry(id.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(self.per_token)));
        Arc::clone(semaphore)
    }
}
