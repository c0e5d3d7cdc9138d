//! [`Catalog`]: the face of the crate.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::sync::Mutex;

use crate::{
    Access, CommitRequest, CommitResult, EnergySource, EnergySourceDraft, EntityId, Error, ErrorKind,
    Expired, Fleet, Manifest, Meter, MeterDraft, NamedSnapshot, NewEntities, NewToken, OnboardingDraft,
    Result, Scheduled, SecretKey, Site, SiteDraft, SiteId, SnapshotAt, SnapshotId, Token,
    db::{Db, Tx},
    entities::{Writer, load_fleet},
    manifest, migrations, tokens,
};

/// How long a revoked token may still work, and how soon one made by another process is known.
pub(crate) const TOKENS_KEPT: Duration = Duration::from_secs(2);

/// The catalog database with its in-memory picture of the fleet.
///
/// # Cancel safety
/// Methods that change something must not be cancelled (see [`Db::begin`]): call them from a task of their own.
pub struct Catalog {
    pub(crate) db: Db,
    pub(crate) key: SecretKey,
    fleet: ArcSwap<Fleet>,
    /// Held while the fleet is read again, so that an older picture never replaces a newer one.
    reload: Mutex<()>,
    tokens: Mutex<Option<KnownTokens>>,
}

/// Requests wait this long for tokens before those known are taken.
const TOKENS_WAIT: Duration = Duration::from_secs(1);

/// All tokens by id, and when they were read.
type KnownTokens = (Instant, Arc<HashMap<String, Token>>);

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").finish_non_exhaustive()
    }
}

impl Catalog {
    /// Opens the catalog and brings its schema up to date.
    ///
    /// `key_file` holds the key of the secrets; it is made when missing. `data_path` is the root of the archive's
    /// storage as outside readers address it (`file:///.../lake/`, `s3://bucket/prefix/`).
    ///
    /// # Errors
    /// An unreachable database, a schema from a newer program, or a catalog that belongs to another storage.
    pub async fn open(url: &str, key_file: &Path, data_path: &str) -> Result<Self> {
        let key = SecretKey::load_or_create(key_file)?;
        let db = Db::open(url).await?;
        migrations::run(&db).await?;
        failpoint!("migrate.after");
        manifest::create(&db, data_path, Timestamp::now()).await?;
        let fleet = ArcSwap::from_pointee(load_fleet(&db).await?);
        Ok(Self { db, key, fleet, reload: Mutex::new(()), tokens: Mutex::new(None) })
    }

    /// Writes a consistent copy of the database to a new file, while others read and write.
    ///
    /// # Errors
    /// On Postgres, which has tools of its own.
    pub async fn copy_to(&self, path: &Path) -> Result<()> {
        let path = path.to_str().ok_or_else(|| Error::invalid(format!("{} is not UTF-8", path.display())))?;
        self.db.copy_to(path).await
    }

    /// Closes the database; afterwards every call fails.
    pub async fn close(&self) {
        self.db.close().await;
    }

    /// The fleet as of the last change.
    pub fn fleet(&self) -> Arc<Fleet> {
        self.fleet.load_full()
    }

    pub(crate) async fn begin(&self) -> Result<Tx> {
        self.db.begin().await
    }

    pub(crate) fn writer<'a>(&'a self, tx: &'a mut Tx) -> Writer<'a> {
        Writer { tx, key: &self.key, now: Timestamp::now() }
    }

    pub(crate) async fn finish(&self, tx: Tx) -> Result<Arc<Fleet>> {
        tx.commit().await?;
        self.refresh().await
    }

    /// Reads the fleet again, for example after another process changed it.
    pub async fn refresh(&self) -> Result<Arc<Fleet>> {
        let _guard = self.reload.lock().await;
        let fleet = Arc::new(load_fleet(&self.db).await?);
        self.fleet.store(Arc::clone(&fleet));
        Ok(fleet)
    }

    pub async fn create_site(&self, draft: &SiteDraft) -> Result<Site> {
        let mut tx = self.begin().await?;
        let id = self.writer(&mut tx).create_site(draft).await?;
        present(self.finish(tx).await?.site(id), id)
    }

    pub async fn update_site(&self, id: SiteId, draft: &SiteDraft) -> Result<Site> {
        let mut tx = self.begin().await?;
        self.writer(&mut tx).update_site(id, draft).await?;
        present(self.finish(tx).await?.site(id), id)
    }

    pub async fn create_meter(&self, draft: &MeterDraft) -> Result<Meter> {
        let mut tx = self.begin().await?;
        let id = self.writer(&mut tx).create_meter(draft).await?;
        present(self.finish(tx).await?.meter(id), id)
    }

    /// Creates several meters in one transaction.
    pub async fn create_meters(&self, drafts: &[MeterDraft]) -> Result<Arc<Fleet>> {
        let mut tx = self.begin().await?;
        for draft in drafts {
            self.writer(&mut tx).create_meter(draft).await?;
        }
        self.finish(tx).await
    }

    pub async fn update_meter(&self, id: EntityId, draft: &MeterDraft) -> Result<Meter> {
        let mut tx = self.begin().await?;
        self.writer(&mut tx).update_meter(id, draft).await?;
        present(self.finish(tx).await?.meter(id), id)
    }

    pub async fn create_source(&self, draft: &EnergySourceDraft) -> Result<EnergySource> {
        let mut tx = self.begin().await?;
        let id = self.writer(&mut tx).create_source(draft).await?;
        present(self.finish(tx).await?.source(id), id)
    }

    pub async fn update_source(&self, id: EntityId, draft: &EnergySourceDraft) -> Result<EnergySource> {
        let mut tx = self.begin().await?;
        self.writer(&mut tx).update_source(id, draft).await?;
        present(self.finish(tx).await?.source(id), id)
    }

    /// Changes some fields of an energy source's metadata and leaves everything else as it is by then, whoever changes it meanwhile; a
    /// null takes a field away. For what the server itself notes: no secrets.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is no such source.
    pub async fn note_source(
        &self,
        id: EntityId,
        fields: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<EnergySource> {
        let mut tx = self.begin().await?;
        self.writer(&mut tx).note_source(id, fields).await?;
        present(self.finish(tx).await?.source(id), id)
    }

    /// Creates a site with its whole tree in one transaction.
    pub async fn onboard(&self, draft: &OnboardingDraft) -> Result<NewEntities> {
        let mut tx = self.begin().await?;
        let created = self.writer(&mut tx).onboard(draft).await?;
        self.finish(tx).await?;
        Ok(created)
    }

    /// Deletes a site; with `cascade` also everything on it.
    pub async fn delete_site(&self, id: SiteId, cascade: bool) -> Result<()> {
        let mut tx = self.begin().await?;
        self.writer(&mut tx).delete_site(id, cascade).await?;
        self.finish(tx).await.map(drop)
    }

    /// Deletes a meter; with `cascade` also the meters below it and all their sources.
    pub async fn delete_meter(&self, id: EntityId, cascade: bool) -> Result<()> {
        let mut tx = self.begin().await?;
        self.writer(&mut tx).delete_meter(id, cascade).await?;
        self.finish(tx).await.map(drop)
    }

    pub async fn delete_source(&self, id: EntityId) -> Result<()> {
        let mut tx = self.begin().await?;
        self.writer(&mut tx).delete_source(id).await?;
        self.finish(tx).await.map(drop)
    }

    /// The newest or an earlier state of the archive.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) when no such snapshot is kept.
    pub async fn manifest(&self, at: SnapshotAt) -> Result<Manifest> {
        let snapshot = manifest::resolve(&self.db, at).await?;
        manifest::load(&self.db, snapshot).await
    }

    /// What a commit said of itself; `None`: there is no such snapshot any more.
    pub async fn commit_message(&self, snapshot: SnapshotId) -> Result<Option<String>> {
        manifest::commit_message(&self.db, snapshot).await
    }

    /// Everything in the write-ahead log up to this sequence number is in files.
    pub async fn wal_checkpoint(&self) -> Result<u64> {
        manifest::load_checkpoint(&self.db).await
    }

    /// Publishes files, deletes and the WAL watermark in one transaction.
    ///
    /// # Errors
    /// [`ErrorKind::Stale`](crate::ErrorKind::Stale) when the change was computed from an older state; nothing was
    /// published then. [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) leaves that open.
    pub async fn commit(&self, request: &CommitRequest) -> Result<CommitResult> {
        manifest::commit(&self.db, request, Timestamp::now()).await
    }

    /// Forgets the snapshots that were superseded before `before` and have no name, and schedules the objects that only
    /// they name. With `is_dry_run` nothing is changed.
    pub async fn expire(&self, before: Timestamp, now: Timestamp, is_dry_run: bool) -> Result<Expired> {
        manifest::expire(&self.db, before, now, is_dry_run).await
    }

    /// Objects that no snapshot names any more, oldest first.
    pub async fn scheduled_objects(&self) -> Result<Vec<Scheduled>> {
        manifest::scheduled(&self.db).await
    }

    /// Forgets scheduled objects that were deleted.
    pub async fn forget_scheduled(&self, paths: &[String]) -> Result<()> {
        manifest::forget_scheduled(&self.db, paths).await
    }

    /// Every object that a kept snapshot names or that is scheduled, relative to the storage's root.
    pub async fn known_objects(&self) -> Result<HashSet<String>> {
        manifest::known_objects(&self.db).await
    }

    /// Keeps the newest snapshot under a name.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) when the name is taken.
    pub async fn name_snapshot(&self, name: &str, now: Timestamp) -> Result<NamedSnapshot> {
        manifest::name_latest(&self.db, name, now).await
    }

    /// The snapshots that have names, by name.
    pub async fn named_snapshots(&self) -> Result<Vec<NamedSnapshot>> {
        manifest::named(&self.db).await
    }

    /// Gives up a name; its snapshot then expires like any other.
    pub async fn forget_snapshot_name(&self, name: &str) -> Result<()> {
        manifest::forget_name(&self.db, name).await
    }

    /// The wall clock at the last round of maintenance, microseconds since 1970 UTC; 0 before the first.
    pub async fn clock_seen(&self) -> Result<i64> {
        manifest::clock_seen(&self.db).await
    }

    /// Notes the wall clock of a round of maintenance.
    pub async fn note_clock(&self, micros: i64) -> Result<()> {
        manifest::note_clock(&self.db, micros).await
    }

    /// Makes a token; the answer is the only time that it is seen. `keep` gets it before it is valid: when that fails, or the process
    /// ends there, no token is valid that nobody knows.
    pub async fn create_token(
        &self,
        new: &NewToken,
        keep: impl FnOnce(&str) -> Result<()> + Send,
    ) -> Result<String> {
        let token = tokens::create(&self.db, new, Timestamp::now(), keep).await?;
        *self.tokens.lock().await = None;
        Ok(token)
    }

    /// All tokens, revoked ones included, without secrets.
    pub async fn tokens(&self) -> Result<Vec<Token>> {
        tokens::list(&self.db).await
    }

    pub async fn revoke_token(&self, id: &str) -> Result<()> {
        tokens::revoke(&self.db, id, Timestamp::now()).await?;
        *self.tokens.lock().await = None;
        Ok(())
    }

    /// What the bearer of a token may do; `None` for an unknown, wrong or revoked one.
    pub async fn authenticate(&self, presented: &str) -> Result<Option<Access>> {
        let Some((id, secret)) = tokens::split(presented) else { return Ok(None) };
        Ok(self.known_tokens().await?.get(id).and_then(|token| token.access(secret)))
    }

    async fn known_tokens(&self) -> Result<Arc<HashMap<String, Token>>> {
        let mut cached = self.tokens.lock().await;
        if let Some((read_at, tokens)) = &*cached
            && read_at.elapsed() < TOKENS_KEPT
        {
            return Ok(Arc::clone(tokens));
        }
        let read = tokio::time::timeout(TOKENS_WAIT, tokens::list(&self.db));
        let read = read.await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Unavailable, "the catalog database does not answer"))
        });
        let list = match (read, &mut *cached) {
            (Ok(list), _) => list,
            // While the database is away or broken, writing goes on with the tokens that were valid before: the log does not need it.
            (Err(error), Some((read_at, tokens))) => {
                tracing::warn!(%error, "tokens could not be read again");
                *read_at = Instant::now();
                return Ok(Arc::clone(tokens));
            }
            (Err(error), None) => return Err(error),
        };
        let tokens = Arc::new(list.into_iter().map(|token| (token.id.clone(), token)).collect());
        *cached = Some((Instant::now(), Arc::clone(&tokens)));
        Ok(tokens)
    }
}

fn present<T: Clone>(found: Option<&T>, id: impl std::fmt::Display) -> Result<T> {
    found.cloned().ok_or_else(|| Error::not_found(format!("{id} was deleted meanwhile")))
}
