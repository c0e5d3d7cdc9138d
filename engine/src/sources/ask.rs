//! One call: within the budget, with a token that is valid, its outcome in one of the known classes.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Mutex as TurnMutex;
use wattlake_catalog::{Grant, Progress, failpoint};

use super::{
    SECOND,
    budget::{Ledger, Purpose},
    connector::{Decoded, FoundDevice, FoundSystem, Stream, Window},
    failure::{CallFailure, Class},
    http::{ANSWER_BYTES_MAX, Answer, Call, HttpClient},
    jq,
    raw::RawArchive,
    settings::SourceSettings,
    time,
};
use crate::{Batch, Engine};

/// Pages of a list of systems.
const LIST_PAGES_MAX: usize = 50;
/// A shorter page is the last one.
const LIST_PAGE_MIN: usize = 50;
/// Pages of an answer.
const PAGES_MAX: usize = 100;
/// A token is not used in its last minute.
const TOKEN_MARGIN: i64 = 60 * SECOND;
/// Access tokens are taken to live this long when the vendor does not say.
const TOKEN_SECONDS: i64 = 3600;
/// Refresh tokens die after 30 days: one that was not needed for so long is renewed all the same.
const TOKEN_IDLE_MAX: i64 = 5 * 86_400 * SECOND;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// No call may be made before then, microseconds since 1970 UTC.
    Later(i64),
    Failed(CallFailure),
}

impl From<CallFailure> for Trouble {
    fn from(failure: CallFailure) -> Self {
        Self::Failed(failure)
    }
}

impl From<crate::Error> for Trouble {
    /// Our own storage is in the way: the call is made again later.
    fn from(error: crate::Error) -> Self {
        Self::Failed(CallFailure::new(Class::Retry, error.message))
    }
}

/// For somebody who asked for a call.
impl From<Trouble> for crate::Error {
    fn from(trouble: Trouble) -> Self {
        Self::invalid(match trouble {
            Trouble::Later(at) => format!("no call may be made before {}", time(at)),
            Trouble::Failed(failure) => failure.message,
        })
    }
}

/// The tokens of a grant.
#[derive(Default)]
struct Tokens {
    newest: Option<Grant>,
    /// It was not kept yet: it must not be used.
    is_unsaved: bool,
    is_loaded: bool,
}

type Shared<T> = Mutex<HashMap<String, Arc<TurnMutex<T>>>>;

/// Makes the calls of all sources.
pub(crate) struct Asker {
    pub engine: Arc<Engine>,
    /// Made with the first call: it reads the certificates that the system trusts.
    client: OnceLock<HttpClient>,
    pub raw: RawArchive,
    /// By credential. Held while a call is counted.
    ledgers: Shared<Option<Ledger>>,
    /// By grant. Held while a token is refreshed, so that only one refresh is under way.
    tokens: Shared<Tokens>,
}

fn shared<T: Default>(all: &Shared<T>, name: &str) -> Arc<TurnMutex<T>> {
    Arc::clone(all.lock().entry(name.to_owned()).or_default())
}

fn redacted(settings: &SourceSettings, mut failure: CallFailure) -> CallFailure {
    failure.message = settings.secrets.redact(&failure.message);
    failure
}

/// How the keys of ledgers begin.
pub(crate) const CALLS: &str = "calls/";

fn ledger_key(credential: &str) -> String {
    format!("{CALLS}{credential}")
}

impl Asker {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        let raw = RawArchive::new(engine.settings());
        Self { engine, client: OnceLock::new(), raw, ledgers: Mutex::default(), tokens: Mutex::default() }
    }

    fn client(&self) -> crate::Result<&HttpClient> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = HttpClient::new()?;
        Ok(self.client.get_or_init(|| client))
    }

    pub(crate) fn now(&self) -> i64 {
        self.engine.clock().now_micros()
    }

    /// Changes the ledger of a credential; the change is durable when this returns.
    pub(crate) async fn with_ledger<T>(
        &self,
        settings: &SourceSettings,
        change: impl FnOnce(&mut Ledger) -> T,
    ) -> crate::Result<T> {
        let held = shared(&self.ledgers, &settings.credential);
        let mut held = held.lock().await;
        let key = ledger_key(&settings.credential);
        let before = match held.take() {
            Some(ledger) => ledger,
            None => {
                let kept = self.engine.progress().await?;
                kept.get(&key).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
            }
        };
        let mut after = before.clone();
        let outcome = change(&mut after);
        if after != before {
            let state = serde_json::to_string(&after).unwrap_or_default();
            let batch = Batch { progress: vec![Progress { key, state }], ..Batch::default() };
            if let Err(error) = self.engine.write(batch).await {
                *held = Some(before);
                return Err(error);
            }
        }
        *held = Some(after);
        Ok(outcome)
    }

    /// Asks for a window of a stream.
    pub(crate) async fn window(
        &self,
        settings: &SourceSettings,
        purpose: Purpose,
        stream: &Stream,
        window: Window,
        in_utc: bool,
    ) -> Result<Decoded, Trouble> {
        let body = self.body(settings, purpose, stream, window, in_utc).await?;
        let decoded = settings.connector.decode(stream, window, &body);
        Ok(decoded.map_err(|failure| redacted(settings, failure))?)
    }

    /// The answer for a window of a stream; it is kept when answers are.
    pub(crate) async fn body(
        &self,
        settings: &SourceSettings,
        purpose: Purpose,
        stream: &Stream,
        window: Window,
        in_utc: bool,
    ) -> Result<Value, Trouble> {
        let connector = &settings.connector;
        let make = || connector.call(stream, window, in_utc);
        let answer = self.call(settings, purpose, Some(stream), make).await?;
        let more = connector.more(stream, window);
        if more.is_empty() && !connector.is_paged(stream) {
            // Before it is read: what is no answer is worth a look as well.
            self.raw.keep(self.now(), settings.id, stream, window, answer.body.clone()).await;
            let document = answer.json().map_err(|failure| redacted(settings, failure))?;
            return self.prepared(settings, stream, document).await;
        }
        let mut document = match connector.is_paged(stream) {
            true => self.pages(settings, purpose, stream, window, &answer).await?,
            false => answer.json().map_err(|failure| redacted(settings, failure))?,
        };
        if !more.is_empty() {
            let mut all = serde_json::Map::from_iter([("answer".to_owned(), document)]);
            for (name, call) in more {
                let answer = self.call(settings, purpose, Some(stream), || call.clone()).await?;
                all.insert(name, answer.json().map_err(|failure| redacted(settings, failure))?);
            }
            document = Value::Object(all);
        }
        let text = serde_json::to_vec(&document).unwrap_or_default();
        self.raw.keep(self.now(), settings.id, stream, window, text.into()).await;
        self.prepared(settings, stream, document).await
    }

    /// The pages of an answer, of which the first one is there.
    async fn pages(
        &self,
        settings: &SourceSettings,
        purpose: Purpose,
        stream: &Stream,
        window: Window,
        first: &Answer,
    ) -> Result<Value, Trouble> {
        let read = |answer: &Answer| answer.json().map_err(|failure| redacted(settings, failure));
        let mut bytes = first.body.len();
        let mut pages = vec![read(first)?];
        while let Some(last) = pages.last() {
            let next = settings.connector.next_page(stream, window, pages.len() as u64, last);
            let Some(call) = next.map_err(|failure| redacted(settings, failure))? else { break };
            if pages.len() >= PAGES_MAX || bytes > ANSWER_BYTES_MAX {
                let class = if stream.is_instant { Class::BadPayload } else { Class::WindowTooLarge };
                let words =
                    format!("{} has more than {PAGES_MAX} pages, or {ANSWER_BYTES_MAX} bytes", first.name);
                return Err(CallFailure::new(class, words).into());
            }
            let answer = self.call(settings, purpose, Some(stream), || call.clone()).await?;
            bytes += answer.body.len();
            pages.push(read(&answer)?);
        }
        Ok(Value::Array(pages))
    }

    /// An answer as it is decoded: what the program of jq yields, where there is one.
    pub(crate) async fn prepared(
        &self,
        settings: &SourceSettings,
        stream: &Stream,
        document: Value,
    ) -> Result<Value, Trouble> {
        let program = settings.connector.program(stream, &document);
        let Some(program) = program.map_err(|failure| redacted(settings, failure))? else {
            return Ok(document);
        };
        let yielded = jq::run(program, &document).await.map_err(|failure| redacted(settings, failure))?;
        Ok(Value::Array(yielded))
    }

    /// Tries the connection.
    pub(crate) async fn probe(&self, settings: &SourceSettings) -> Result<(), Trouble> {
        let answer = self.call(settings, Purpose::Poll, None, || settings.connector.probe()).await?;
        answer.json().map(drop).map_err(|failure| redacted(settings, failure).into())
    }

    /// The systems that the credential sees; `None`: the vendor has no such list.
    pub(crate) async fn list(&self, settings: &SourceSettings) -> Result<Option<Vec<FoundSystem>>, Trouble> {
        let mut found: Vec<FoundSystem> = Vec::new();
        for page in 1..=LIST_PAGES_MAX {
            let Some(call) = settings.connector.list(page) else { return Ok(None) };
            let answer = self.call(settings, Purpose::Poll, None, || call.clone()).await?;
            let listed = answer.json().and_then(|body| settings.connector.listed(&body));
            let before = found.len();
            for system in listed.map_err(|failure| redacted(settings, failure))? {
                if !found.iter().any(|known| known.system_id == system.system_id) {
                    found.push(system);
                }
            }
            // Whatever a page holds: without anything new there is no further one.
            if found.len() == before || found.len() - before < LIST_PAGE_MIN {
                break;
            }
        }
        Ok(Some(found))
    }

    /// The devices of a system; `None`: the vendor has no such list.
    pub(crate) async fn devices(
        &self,
        settings: &SourceSettings,
        system_id: &str,
    ) -> Result<Option<Vec<FoundDevice>>, Trouble> {
        let Some(call) = settings.connector.devices(system_id) else { return Ok(None) };
        let answer = self.call(settings, Purpose::Poll, None, || call.clone()).await?;
        let listed = answer.json().and_then(|body| settings.connector.devices_listed(&body));
        Ok(Some(listed.map_err(|failure| redacted(settings, failure))?))
    }

    async fn call(
        &self,
        settings: &SourceSettings,
        purpose: Purpose,
        stream: Option<&Stream>,
        make: impl Fn() -> Call,
    ) -> Result<Answer, Trouble> {
        let mut refused: Option<String> = None;
        let mut challenge: Option<String> = None;
        loop {
            let token = self.access_token(settings, refused.as_deref()).await?;
            let now = self.now();
            self.with_ledger(settings, |ledger| ledger.take(&settings.limits, purpose, now))
                .await?
                .map_err(Trouble::Later)?;
            failpoint!("poll.before_call");
            let mut call = make();
            settings.connector.authorise(&mut call, token.as_deref());
            if let Some(challenge) = &challenge {
                settings.connector.respond(&mut call, challenge);
            }
            let mut secrets = settings.secrets.clone();
            token.iter().for_each(|token| secrets.add(token));
            metrics::counter!("wattlake_source_calls_total").increment(1);
            let answer = self.client()?.send(&call, &secrets).await?;
            if answer.is_success() {
                return Ok(answer);
            }
            if challenge.is_none()
                && let Some(text) = answer.challenge()
                && settings.connector.respond(&mut call, text)
            {
                challenge = Some(text.to_owned());
                continue;
            }
            let mut failure = settings.connector.failure(stream, &answer, self.now());
            failure.message = secrets.redact(&failure.message);
            match (&failure.class, token) {
                // Once: a token that is refused right after it was made will be refused again.
                (Class::AuthExpired, Some(token)) if refused.is_none() => refused = Some(token),
                // A fresh one that is refused as well: the vendor has a problem, or will say at the next refresh that it is over.
                (Class::AuthExpired, Some(_)) => {
                    return Err(CallFailure::new(Class::Retry, failure.message).into());
                }
                (Class::AuthExpired, None) => {
                    return Err(CallFailure::new(Class::AuthDead, failure.message).into());
                }
                (Class::Throttled { until }, _) => {
                    let until = *until;
                    self.with_ledger(settings, |ledger| ledger.pause(until)).await?;
                    return Err(failure.into());
                }
                (Class::QuotaExhausted, _) => {
                    let now = self.now();
                    self.with_ledger(settings, |ledger| ledger.exhaust(&settings.limits, now)).await?;
                    return Err(failure.into());
                }
                _ => return Err(failure.into()),
            }
        }
    }

    /// A token that is valid; none where the vendor wants none. `refused` is one that the vendor does not take any more.
    async fn access_token(
        &self,
        settings: &SourceSettings,
        refused: Option<&str>,
    ) -> Result<Option<String>, Trouble> {
        let Some((first, id)) = &settings.grant else { return Ok(None) };
        let held = shared(&self.tokens, id);
        let mut held = held.lock().await;
        if !held.is_loaded {
            held.newest = self.engine.catalog().grant(id).await.map_err(crate::Error::from)?;
            held.is_loaded = true;
        }
        if held.is_unsaved {
            self.keep(id, &mut held).await?;
        }
        let now = self.now();
        if let Some(grant) = &held.newest
            && grant.expires_at > now + TOKEN_MARGIN
            && refused != Some(&grant.access_token)
        {
            return Ok(Some(grant.access_token.clone()));
        }
        let refresh_token = held.newest.as_ref().map_or(first, |grant| &grant.refresh_token).clone();
        let Some(call) = settings.connector.refresh(&refresh_token) else { return Ok(None) };
        let mut secrets = settings.secrets.clone();
        secrets.add(&refresh_token);
        let answer = self.client()?.send(&call, &secrets).await?;
        failpoint!("poll.after_refresh");
        if !answer.is_success() {
            let mut failure = match answer.status {
                400 | 401 | 403 => CallFailure::new(
                    Class::AuthDead,
                    format!(
                        "{} answered {}: the authorisation is not valid any more; {}",
                        answer.name,
                        answer.status,
                        settings.connector.how_to_authorise()
                    ),
                ),
                _ => settings.connector.failure(None, &answer, self.now()),
            };
            failure.message = secrets.redact(&failure.message);
            return Err(failure.into());
        }
        let fresh = settings.connector.fresh(&answer).ok_or_else(|| {
            CallFailure::new(Class::BadPayload, format!("{} gave no access token", answer.name))
        })?;
        let lives = fresh.expires_in.unwrap_or(TOKEN_SECONDS).clamp(60, 366 * 86_400);
        held.newest = Some(Grant {
            access_token: fresh.access_token,
            refresh_token: fresh.refresh_token.unwrap_or(refresh_token),
            expires_at: now + lives * SECOND,
        });
        held.is_unsaved = true;
        self.keep(id, &mut held).await?;
        Ok(held.newest.as_ref().map(|grant| grant.access_token.clone()))
    }

    /// Keeps new tokens before they are used: the vendor forgets the old ones.
    async fn keep(&self, id: &str, held: &mut Tokens) -> crate::Result<()> {
        if let Some(grant) = &held.newest {
            self.engine.catalog().save_grant(id, grant).await?;
        }
        held.is_unsaved = false;
        Ok(())
    }

    /// Renews tokens that nobody has needed for days.
    pub(crate) async fn keep_alive(&self, settings: &SourceSettings) -> Result<(), Trouble> {
        let Some((_, id)) = &settings.grant else { return Ok(()) };
        let is_idle = {
            let held = shared(&self.tokens, id);
            let held = held.lock().await;
            held.newest.as_ref().is_some_and(|grant| grant.expires_at + TOKEN_IDLE_MAX < self.now())
        };
        if is_idle { self.access_token(settings, None).await.map(drop) } else { Ok(()) }
    }
}
