//! Tokens of grants. Each refresh gives new ones; the refresh token before dies with the first use of what it gave, so that an answer
//! that got lost on its way does no harm.

use std::collections::{BTreeMap, HashMap};

use super::SECOND;

#[derive(Default)]
pub(super) struct Tokens {
    /// System and whether they are spent, by refresh token.
    refresh: HashMap<String, (String, bool)>,
    /// By access token.
    access: HashMap<String, Access>,
    made: u64,
}

struct Access {
    system: String,
    expires_at: i64,
    /// The refresh token that it was given for, until its first use.
    replaces: Option<String>,
}

impl Tokens {
    pub(super) fn grant(&mut self, refresh_token: &str, system: &str) {
        self.refresh.insert(refresh_token.to_owned(), (system.to_owned(), false));
    }

    /// A new access token and refresh token; `None`: the old one is not valid.
    pub(super) fn refresh(&mut self, old: &str, lives: i64, now: i64) -> Option<(String, String)> {
        let (system, _) = self.refresh.get(old).filter(|(_, is_spent)| !is_spent)?.clone();
        self.made += 1;
        let (access, fresh) =
            (format!("access-{system}-{}", self.made), format!("refresh-{system}-{}", self.made));
        self.refresh.insert(fresh.clone(), (system.clone(), false));
        let given = Access { system, expires_at: now + lives * SECOND, replaces: Some(old.to_owned()) };
        self.access.insert(access.clone(), given);
        Some((access, fresh))
    }

    /// Whether an access token is good for a system.
    pub(super) fn is_valid(&mut self, token: &str, system: &str, now: i64) -> bool {
        let Some(access) = self.access.get_mut(token) else { return false };
        if access.system != system || access.expires_at <= now {
            return false;
        }
        if let Some(old) = access.replaces.take()
            && let Some((_, is_spent)) = self.refresh.get_mut(&old)
        {
            *is_spent = true;
        }
        true
    }

    /// How often each system's grant was renewed.
    pub(super) fn refreshes(&self) -> BTreeMap<&str, u64> {
        let mut counts = BTreeMap::new();
        for (system, _) in self.refresh.values() {
            // The first one is the grant itself.
            counts.entry(system.as_str()).and_modify(|count| *count += 1).or_insert(0);
        }
        counts
    }

    pub(super) fn revoke(&mut self, token: &str) {
        self.access.remove(token);
    }
}
