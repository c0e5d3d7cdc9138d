//! One suite over every kind of catalog database: it runs on SQLite and on a real Postgres server.

mod postgres;

use std::{path::Path, sync::atomic::AtomicUsize};

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::*;

/// A fresh catalog of each kind.
async fn catalogs(dir: &Path) -> Vec<Catalog> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut out = Vec::new();
    for url in [format!("sqlite:{}/catalog{n}.db", dir.display()), postgres::database().await] {
        out.push(Catalog::open(&url, &dir.join("key"), "file:///lake/").await.expect(&url));
    }
    out
}

macro_rules! conformance {
    ($($name:ident),* $(,)?) => {$(
        #[tokio::test]
        async fn $name() {
            let dir = tempfile::TempDir::new().expect("dir");
            for catalog in catalogs(dir.path()).await {
                suite::$name(&catalog).await;
                catalog.close().await;
            }
        }
    )*};
}

conformance! {
    fleet_is_written_and_read_back,
    bad_trees_are_refused,
    deleting_asks_for_cascade,
    secrets_are_sealed_and_kept,
    onboarding_is_all_or_nothing,
    tokens_authenticate_until_revoked,
    commits_publish_files_and_watermark,
    stale_commits_publish_nothing,
    earlier_snapshots_stay_readable,
    rewrites_replace_files_and_keep_history,
    expiry_keeps_the_window_and_what_has_a_name,
    concurrent_writers_take_turns,
    what_sources_need_is_kept_and_goes_with_them,
}

#[tokio::test]
async fn a_catalog_belongs_to_its_storage() {
    let dir = tempfile::TempDir::new().expect("dir");
    let url = format!("sqlite:{}/catalog.db", dir.path().display());
    let key = dir.path().join("key");
    let catalog = Catalog::open(&url, &key, "s3://one/").await.expect("opens");
    catalog
        .commit(&CommitRequest { new_files: vec![suite::file("a")], ..CommitRequest::default() })
        .await
        .expect("commit");
    catalog.close().await;
    let error = Catalog::open(&url, &key, "s3://two/").await.expect_err("other storage");
    assert!(error.kind == ErrorKind::Conflict && error.message.contains("s3://one/"), "{error}");
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let dir = tempfile::TempDir::new().expect("dir");
    let url = format!("sqlite:{}/catalog.db", dir.path().display());
    let key = dir.path().join("key");
    Catalog::open(&url, &key, "file:///lake/").await.expect("opens").close().await;
    let db = db::Db::open(&url).await.expect("db");
    let mut tx = db.begin().await.expect("tx");
    let sql = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
               VALUES (9999, 'future', 1, x'00', 0)";
    tx.execute(sql, vec![]).await.expect("insert");
    tx.commit().await.expect("commit");
    db.close().await;
    let error = Catalog::open(&url, &key, "file:///lake/").await.expect_err("newer");
    assert!(error.message.contains("9999") && error.message.contains("newer"), "{error}");
}

mod suite {
    use super::*;

    fn draft<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).expect("draft")
    }

    async fn site(catalog: &Catalog, name: &str) -> SiteId {
        catalog.create_site(&draft(json!({ "name": name }))).await.expect("site").id
    }

    async fn meter(catalog: &Catalog, site: SiteId, parent: Option<EntityId>) -> EntityId {
        let body = json!({ "siteId": site, "parentMeterId": parent, "name": "m", "category": "CONS" });
        catalog.create_meter(&draft(body)).await.expect("meter").id
    }

    pub(super) fn file(name: &str) -> NewDataFile {
        NewDataFile {
            stored: StoredFile {
                path: format!("month=2026-01/{name}.parquet"),
                bytes: 10,
                footer_bytes: 3,
                blake3: "00".into(),
                sums: BlockSums::new([1, 2, 3]),
            },
            rows: 100,
            row_group_rows: 1 << 20,
            level: 0,
            bounds: FileBounds {
                min_ts: 0,
                max_ts: 1_500_000,
                min_entity: "a".into(),
                max_entity: "b".into(),
                min_metric: "power".into(),
                max_metric: "soc".into(),
            },
            delete: None,
        }
    }

    fn delete(data_file_id: i64, replaces: Option<i64>, count: u64) -> NewDeleteFile {
        let stored = StoredFile {
            path: format!("_deletes/{data_file_id}-{count}.parquet"),
            bytes: 5,
            footer_bytes: 2,
            blake3: "01".into(),
            sums: BlockSums::default(),
        };
        NewDeleteFile { data_file_id, replaces, stored, count }
    }

    pub(super) async fn fleet_is_written_and_read_back(catalog: &Catalog) {
        let body = json!({ "name": "Plant Ä", "location": "52,13", "industryType": "industrial", "description": "d",
            "metadata": { "timezone": "Europe/Berlin", "x": [1, null] } });
        let site = catalog.create_site(&draft(body)).await.expect("site");
        assert_eq!((site.zone_name(), site.active), (Some("Europe/Berlin"), true));
        let meter = catalog
            .create_meter(&draft(json!({ "siteId": site.id, "name": "m", "category": "PROD",
                "readingFrequency": "5min", "capacity": 10.5, "metadata": { "externalId": "serial-1" } })))
            .await
            .expect("meter");
        let source = catalog
            .create_source(&draft(json!({ "meterId": meter.id, "name": "s", "sourceType": "solar" })))
            .await
            .expect("source");
        catalog.refresh().await.expect("read again");
        let fleet = catalog.fleet();
        assert_eq!(fleet.site(site.id), Some(&site));
        assert_eq!(fleet.meter(meter.id), Some(&meter));
        assert_eq!(fleet.source(source.id), Some(&source));
        assert_eq!(fleet.by_external_id("serial-1"), Some(meter.id));
        assert_eq!(fleet.site_of(source.id).map(|s| s.id), Some(site.id));
        let changed =
            MeterDraft { name: "renamed".into(), metadata: Default::default(), ..MeterDraft::from(&meter) };
        let changed = catalog.update_meter(meter.id, &changed).await.expect("update");
        assert_eq!(
            (changed.name.as_str(), changed.capacity, changed.created_at),
            ("renamed", Some(10.5), meter.created_at)
        );
        assert_eq!(catalog.fleet().by_external_id("serial-1"), None);
    }

    pub(super) async fn bad_trees_are_refused(catalog: &Catalog) {
        let (a, b) = (site(catalog, "a").await, site(catalog, "b").await);
        let top = meter(catalog, a, None).await;
        let below = meter(catalog, a, Some(top)).await;
        let move_to = async |id: EntityId, site: SiteId, parent: Option<EntityId>| {
            let fleet = catalog.fleet();
            let stored = fleet.meter(id).expect("meter");
            let changed = MeterDraft { site_id: site, parent_meter_id: parent, ..MeterDraft::from(stored) };
            catalog.update_meter(id, &changed).await.expect_err("refused").message
        };
        assert!(move_to(top, a, Some(below)).await.contains("cycle"));
        assert!(move_to(top, a, Some(top)).await.contains("cycle"));
        assert!(move_to(below, b, Some(top)).await.contains("one site"));
        assert!(move_to(top, b, None).await.contains("below it"));
        assert!(move_to(below, a, Some(EntityId::random())).await.contains("does not exist"));
        assert!("SOLAR".parse::<Category>().expect_err("unknown").message.contains("PROD, CONS, STOR, INJ"));
        assert!("12".parse::<SiteId>().expect_err("no uuid").message.contains("`12`"));
        let twice = json!({ "id": top, "siteId": a, "name": "m", "category": "CONS" });
        assert_eq!(catalog.create_meter(&draft(twice)).await.expect_err("exists").kind, ErrorKind::Conflict);
        let source = json!({ "id": top, "meterId": top, "name": "s", "sourceType": "grid" });
        assert_eq!(
            catalog.create_source(&draft(source)).await.expect_err("exists").kind,
            ErrorKind::Conflict
        );
        let external = |name: &str| json!({ "siteId": a, "name": "m", "category": "CONS", "metadata": { "externalId": name } });
        catalog.create_meter(&draft(external("x"))).await.expect("first");
        assert_eq!(
            catalog.create_meter(&draft(external("x"))).await.expect_err("taken").kind,
            ErrorKind::Conflict
        );
    }

    pub(super) async fn deleting_asks_for_cascade(catalog: &Catalog) {
        let a = site(catalog, "a").await;
        let top = meter(catalog, a, None).await;
        let below = meter(catalog, a, Some(top)).await;
        catalog
            .create_source(&draft(json!({ "meterId": below, "name": "s", "sourceType": "solar" })))
            .await
            .expect("source");
        for refused in [
            catalog.delete_site(a, false).await,
            catalog.delete_meter(top, false).await,
            catalog.delete_meter(below, false).await,
        ] {
            let error = refused.expect_err("has children");
            assert!(error.kind == ErrorKind::Conflict && error.message.contains("cascade"), "{error}");
        }
        catalog.delete_meter(top, true).await.expect("cascade");
        assert_eq!((catalog.fleet().meters().count(), catalog.fleet().sources().count()), (0, 0));
        catalog.delete_site(a, false).await.expect("empty now");
        assert_eq!(catalog.delete_site(a, false).await.expect_err("gone").kind, ErrorKind::NotFound);
    }

    pub(super) async fn secrets_are_sealed_and_kept(catalog: &Catalog) {
        let a = site(catalog, "a").await;
        let m = meter(catalog, a, None).await;
        let body =
            json!({ "meterId": m, "name": "s", "sourceType": "solar", "metadata": { "apiKey": "hunter2" } });
        let source = catalog.create_source(&draft(body)).await.expect("source");
        assert_eq!(source.metadata["apiKey"], MASK);
        let stored = async || {
            let sql = "SELECT metadata FROM energy_sources";
            catalog.db.row(sql, vec![]).await.expect("row").expect("one").json(0).expect("json")["apiKey"]
                .clone()
        };
        let sealed = stored().await;
        let text = sealed.as_str().expect("text").to_owned();
        assert!(!text.contains("hunter2"));
        assert_eq!(catalog.key.open(&text, source.id.0, "apiKey").expect("opens"), "hunter2");
        assert!(catalog.key.open(&text, m.0, "apiKey").is_err(), "moved to another row");
        catalog.update_source(source.id, &EnergySourceDraft::from(&source)).await.expect("update");
        assert_eq!(stored().await, sealed, "*** means unchanged");
        let mut moved = EnergySourceDraft::from(&source);
        moved.metadata.insert("baseUrl".into(), "https://a.example/v2".into());
        let error = catalog.update_source(source.id, &moved).await.expect_err("a secret for another address");
        assert!(error.message.contains("metadata.apiKey: give it anew, since baseUrl changes"), "{error}");
        moved.metadata.insert("apiKey".into(), "hunter3".into());
        let moved = catalog.update_source(source.id, &moved).await.expect("update");
        let mut other_path = EnergySourceDraft::from(&moved);
        other_path.metadata.insert("baseUrl".into(), "https://a.example/v3".into());
        let changed = catalog.update_source(source.id, &other_path).await.expect("the same host");
        // What the server notes takes nothing back that somebody changed since it looked.
        let note = json!({ "connectionStatus": "connected", "lastError": null });
        let noted = catalog.note_source(source.id, note.as_object().expect("fields")).await.expect("noted");
        assert_eq!(noted.metadata["baseUrl"], "https://a.example/v3");
        assert_eq!(
            (noted.metadata["connectionStatus"].as_str(), noted.metadata.get("lastError")),
            (Some("connected"), None)
        );
        assert_eq!(noted.updated_at, changed.updated_at);
        let opened = catalog.source_with_secrets(source.id).await.expect("source");
        assert_eq!(opened.metadata["apiKey"], "hunter3");
        let missing = catalog.note_source(EntityId::random(), &serde_json::Map::new()).await;
        assert_eq!(missing.expect_err("no source").kind, ErrorKind::NotFound);
    }

    pub(super) async fn onboarding_is_all_or_nothing(catalog: &Catalog) {
        let parent = EntityId::random();
        let body = |last: EntityId| {
            json!({ "site": { "name": "s" }, "meters": [
                { "id": parent, "name": "p", "category": "CONS", "sources": [{ "name": "x", "sourceType": "ev" }] },
                { "name": "c", "category": "CONS", "parentMeterId": last },
            ] })
        };
        assert!(catalog.onboard(&draft(body(EntityId::random()))).await.is_err());
        catalog.refresh().await.expect("read");
        assert_eq!(catalog.fleet().sites().count(), 0);
        let created = catalog.onboard(&draft(body(parent))).await.expect("onboarded");
        assert_eq!((created.meter_ids.len(), created.source_ids.len()), (2, 1));
        assert_eq!(catalog.fleet().children(parent), [created.meter_ids[1]]);
    }

    pub(super) async fn tokens_authenticate_until_revoked(catalog: &Catalog) {
        let new = NewToken { name: "t".into(), scopes: vec![Scope::Read], sites: vec![] };
        let full = catalog.create_token(&new, |_| Err(Error::invalid("no space"))).await;
        assert!(full.is_err() && catalog.tokens().await.expect("tokens").is_empty(), "it could not be kept");
        let mut kept = String::new();
        let keep = |token: &str| {
            kept = token.to_owned();
            Ok(())
        };
        let token = catalog.create_token(&new, keep).await.expect("token");
        assert_eq!(kept, token);
        let access = catalog.authenticate(&token).await.expect("checked").expect("valid");
        assert!(access.allows(Scope::Read) && !access.allows(Scope::Write) && !access.allows(Scope::Admin));
        for wrong in ["", "wl_", "wl_x_y", &format!("{token}x"), &token[..token.len() - 1]] {
            assert!(catalog.authenticate(wrong).await.expect("checked").is_none(), "{wrong}");
        }
        let stored = catalog.db.rows("SELECT secret_sha256 FROM wattlake_token", vec![]).await.expect("rows");
        assert!(!token.contains(&stored[0].text(0).expect("text")));
        // A database that is broken, not only away, takes nothing from those who were known.
        let rename = async |from: &str, to: &str| {
            let mut tx = catalog.begin().await.expect("tx");
            tx.execute(&format!("ALTER TABLE {from} RENAME TO {to}"), vec![]).await.expect("renamed");
            tx.commit().await.expect("commit");
        };
        rename("wattlake_token", "lost").await;
        tokio::time::sleep(catalog::TOKENS_KEPT + std::time::Duration::from_millis(10)).await;
        assert!(catalog.authenticate(&token).await.expect("checked").is_some());
        assert!(catalog.authenticate(&format!("{token}x")).await.expect("checked").is_none());
        rename("lost", "wattlake_token").await;
        catalog.revoke_token(&access.token_id).await.expect("revoked");
        assert!(catalog.authenticate(&token).await.expect("checked").is_none());
        assert_eq!(
            catalog.revoke_token(&access.token_id).await.expect_err("twice").kind,
            ErrorKind::NotFound
        );
    }

    pub(super) async fn commits_publish_files_and_watermark(catalog: &Catalog) {
        let start = catalog.manifest(SnapshotAt::Latest).await.expect("manifest");
        assert_eq!((start.snapshot, start.files.len()), (SnapshotId(1), 0));
        let request = CommitRequest {
            new_files: vec![file("a"), file("b")],
            wal_sequence: Some(7),
            message: "m".into(),
            ..CommitRequest::default()
        };
        let result = catalog.commit(&request).await.expect("commit");
        assert_eq!((result.snapshot, result.data_file_ids.as_slice()), (SnapshotId(2), &[0, 1][..]));
        let after = start.after(&request, &result);
        assert_eq!(
            catalog.manifest(SnapshotAt::Latest).await.expect("manifest"),
            after,
            "memory and database agree"
        );
        assert_eq!(catalog.wal_checkpoint().await.expect("checkpoint"), 7);
        let only_watermark = CommitRequest { wal_sequence: Some(9), ..CommitRequest::default() };
        assert_eq!(catalog.commit(&only_watermark).await.expect("commit").snapshot, SnapshotId(2));
        assert_eq!(catalog.wal_checkpoint().await.expect("checkpoint"), 9);
        let back = CommitRequest { wal_sequence: Some(8), ..CommitRequest::default() };
        assert!(catalog.commit(&back).await.is_err(), "the watermark never goes back");
        let deletes = CommitRequest { new_deletes: vec![delete(0, None, 3)], ..CommitRequest::default() };
        let result = catalog.commit(&deletes).await.expect("commit");
        let last = after.after(&deletes, &result);
        assert_eq!(catalog.manifest(SnapshotAt::Latest).await.expect("manifest"), last);
        assert_eq!(last.live_rows(), 197);
    }

    pub(super) async fn stale_commits_publish_nothing(catalog: &Catalog) {
        let add = CommitRequest { new_files: vec![file("a")], ..CommitRequest::default() };
        catalog.commit(&add).await.expect("commit");
        let first = CommitRequest { new_deletes: vec![delete(0, None, 1)], ..CommitRequest::default() };
        let result = catalog.commit(&first).await.expect("commit");
        let stale = CommitRequest {
            wal_sequence: Some(5),
            new_files: vec![file("c")],
            new_deletes: vec![delete(0, None, 2)],
            ..CommitRequest::default()
        };
        assert_eq!(catalog.commit(&stale).await.expect_err("stale").kind, ErrorKind::Stale);
        let unknown = CommitRequest { new_deletes: vec![delete(99, None, 2)], ..CommitRequest::default() };
        assert_eq!(catalog.commit(&unknown).await.expect_err("stale").kind, ErrorKind::Stale);
        // As it is when the answer to the commit before was lost.
        let base = Some(SnapshotId(result.snapshot.0 - 1));
        let behind = CommitRequest {
            base,
            new_files: vec![file("c")],
            wal_sequence: Some(5),
            ..CommitRequest::default()
        };
        assert_eq!(catalog.commit(&behind).await.expect_err("stale").kind, ErrorKind::Stale);
        let manifest = catalog.manifest(SnapshotAt::Latest).await.expect("manifest");
        assert_eq!((manifest.snapshot, manifest.files.len()), (result.snapshot, 1));
        assert_eq!(catalog.wal_checkpoint().await.expect("checkpoint"), 0);
        let right = CommitRequest {
            base: Some(result.snapshot),
            new_deletes: vec![delete(0, Some(result.delete_file_ids[0]), 2)],
            ..CommitRequest::default()
        };
        catalog.commit(&right).await.expect("on the right base");
    }

    pub(super) async fn earlier_snapshots_stay_readable(catalog: &Catalog) {
        let add = |name: &str| CommitRequest { new_files: vec![file(name)], ..CommitRequest::default() };
        let first = catalog.commit(&add("a")).await.expect("commit").snapshot;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        let then = Timestamp::now();
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        catalog.commit(&add("b")).await.expect("commit");
        catalog
            .commit(&CommitRequest { new_deletes: vec![delete(0, None, 1)], ..CommitRequest::default() })
            .await
            .expect("commit");
        for at in [SnapshotAt::Id(first), SnapshotAt::Time(then)] {
            let manifest = catalog.manifest(at).await.expect("manifest");
            assert_eq!((manifest.snapshot, manifest.files.len(), manifest.live_rows()), (first, 1, 100));
        }
        let before = Timestamp::from_second(0).expect("time");
        assert_eq!(
            catalog.manifest(SnapshotAt::Time(before)).await.expect_err("none").kind,
            ErrorKind::NotFound
        );
    }

    fn add(names: &[&str]) -> CommitRequest {
        CommitRequest { new_files: names.iter().map(|name| file(name)).collect(), ..CommitRequest::default() }
    }

    async fn latest(catalog: &Catalog) -> Manifest {
        catalog.manifest(SnapshotAt::Latest).await.expect("manifest")
    }

    /// The new file replaces two, of which one has deletes; a base that moved on is refused.
    async fn rewrite(catalog: &Catalog, base: &Manifest, name: &str) -> Result<CommitResult> {
        let removed = base.files.iter().map(|file| file.removal()).collect();
        catalog.commit(&CommitRequest { removed, is_rewrite: true, ..add(&[name]) }).await
    }

    pub(super) async fn rewrites_replace_files_and_keep_history(catalog: &Catalog) {
        catalog.commit(&add(&["a", "b"])).await.expect("commit");
        let before = latest(catalog).await;
        let deletes = CommitRequest { new_deletes: vec![delete(0, None, 3)], ..CommitRequest::default() };
        catalog.commit(&deletes).await.expect("commit");
        let error = rewrite(catalog, &before, "c").await.expect_err("file 0 has deletes meanwhile");
        assert_eq!(error.kind, ErrorKind::Stale);
        let with_deletes = latest(catalog).await;
        let removed: Vec<_> = with_deletes.files.iter().map(|file| file.removal()).collect();
        let request = CommitRequest { removed, is_rewrite: true, ..add(&["c"]) };
        let result = catalog.commit(&request).await.expect("rewrite");
        let after = latest(catalog).await;
        assert_eq!(after, with_deletes.after(&request, &result), "memory and database agree");
        assert_eq!((after.files.len(), after.live_rows()), (1, 100));
        let earlier = catalog.manifest(SnapshotAt::Id(with_deletes.snapshot)).await.expect("manifest");
        assert_eq!((earlier.files.len(), earlier.live_rows()), (2, 197));
        assert_eq!(rewrite(catalog, &with_deletes, "d").await.expect_err("gone").kind, ErrorKind::Stale);
    }

    pub(super) async fn expiry_keeps_the_window_and_what_has_a_name(catalog: &Catalog) {
        let now = Timestamp::now();
        let pause = async || tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        catalog.commit(&add(&["a"])).await.expect("commit");
        let first = latest(catalog).await;
        let named = catalog.name_snapshot("audit-2025", now).await.expect("named");
        assert_eq!(named.snapshot, first.snapshot);
        assert_eq!(
            catalog.name_snapshot("audit-2025", now).await.expect_err("taken").kind,
            ErrorKind::Conflict
        );
        assert_eq!(catalog.name_snapshot("2025; --", now).await.expect_err("odd").kind, ErrorKind::Invalid);
        rewrite(catalog, &first, "b").await.expect("rewrite");
        let second = latest(catalog).await;
        rewrite(catalog, &second, "c").await.expect("rewrite");
        let third = latest(catalog).await;
        pause().await;
        let limit = Timestamp::now();
        pause().await;
        rewrite(catalog, &third, "d").await.expect("rewrite");
        let planned = catalog.expire(limit, now, true).await.expect("dry run");
        assert!(catalog.manifest(SnapshotAt::Id(second.snapshot)).await.is_ok(), "a dry run changes nothing");
        let expired = catalog.expire(limit, now, false).await.expect("expiry");
        assert_eq!(planned, expired);
        // Gone: the two empty snapshots of the creation and the second, with the file that only it names.
        assert_eq!((expired.snapshots, expired.data_files), (3, 1));
        let scheduled = catalog.scheduled_objects().await.expect("scheduled");
        assert_eq!(
            scheduled.iter().map(|s| s.path.as_str()).collect::<Vec<_>>(),
            ["measurements/month=2026-01/b.parquet"]
        );
        let by_name = catalog.manifest(SnapshotAt::Name("audit-2025".into())).await.expect("named");
        assert_eq!(by_name, first);
        assert_eq!(catalog.manifest(SnapshotAt::Time(limit)).await.expect("window"), third);
        assert_eq!(
            catalog.manifest(SnapshotAt::Id(second.snapshot)).await.expect_err("gone").kind,
            ErrorKind::NotFound
        );
        assert_eq!(catalog.known_objects().await.expect("known").len(), 4);
        catalog.forget_scheduled(&[scheduled[0].path.clone()]).await.expect("swept");
        assert_eq!(catalog.known_objects().await.expect("known").len(), 3);
        catalog.forget_snapshot_name("audit-2025").await.expect("forgotten");
        assert_eq!(catalog.forget_snapshot_name("x").await.expect_err("unknown").kind, ErrorKind::NotFound);
        assert_eq!(catalog.expire(limit, now, false).await.expect("expiry").data_files, 1);
        catalog.note_clock(77).await.expect("clock");
        assert_eq!(catalog.clock_seen().await.expect("clock"), 77);
    }

    pub(super) async fn concurrent_writers_take_turns(catalog: &Catalog) {
        let create =
            async |n: usize| catalog.create_site(&draft(json!({ "name": format!("s{n}") }))).await.map(drop);
        let commit = async |n: usize| {
            let request = CommitRequest { new_files: vec![file(&n.to_string())], ..CommitRequest::default() };
            catalog.commit(&request).await.map(drop)
        };
        let (sites, commits) = tokio::join!(
            futures::future::join_all((0..10).map(create)),
            futures::future::join_all((0..10).map(commit))
        );
        sites.into_iter().chain(commits).collect::<Result<Vec<_>>>().expect("all succeed");
        catalog.refresh().await.expect("read");
        assert_eq!(catalog.fleet().sites().count(), 10);
        assert_eq!(catalog.manifest(SnapshotAt::Latest).await.expect("manifest").files.len(), 10);
    }

    pub(super) async fn what_sources_need_is_kept_and_goes_with_them(catalog: &Catalog) {
        let site = site(catalog, "S").await;
        let meter = meter(catalog, site, None).await;
        let draft = EnergySourceDraft {
            id: None,
            meter_id: meter,
            name: "s".into(),
            source_type: "solar".into(),
            capacity: None,
            metadata: json!({ "apiKey": "canary", "auth": { "token": "canary too" } })
                .as_object()
                .cloned()
                .expect("an object"),
            active: true,
        };
        let source = catalog.create_source(&draft).await.expect("source").id;
        let told = catalog.source_with_secrets(source).await.expect("a source").metadata;
        assert_eq!((&told["apiKey"], &told["auth"]["token"]), (&json!("canary"), &json!("canary too")));
        // Progress comes with files or alone; what is empty is forgotten.
        let progress = |key: String, state: &str| Progress { key, state: state.into() };
        let cursor = format!("source/{source}/energy");
        let states = vec![progress(cursor.clone(), "{}"), progress("calls/x".into(), "1")];
        catalog
            .commit(&CommitRequest { progress: states, ..CommitRequest::default() })
            .await
            .expect("commit");
        let states = vec![progress("calls/x".into(), "2"), progress("job/y".into(), "")];
        let request =
            CommitRequest { new_files: vec![file("p")], progress: states, ..CommitRequest::default() };
        catalog.commit(&request).await.expect("commit");
        let mut kept = catalog.progress().await.expect("progress");
        kept.sort_by(|a, b| a.key.cmp(&b.key));
        assert_eq!(kept, [progress("calls/x".into(), "2"), progress(cursor, "{}")]);
        // Grants are sealed, and open under their own name only.
        let grant =
            |n: i64| Grant { access_token: format!("a{n}"), refresh_token: format!("r{n}"), expires_at: n };
        catalog.save_grant("g", &grant(1)).await.expect("kept");
        catalog.save_grant("g", &grant(2)).await.expect("kept");
        let newest = catalog.grant("g").await.expect("a grant").expect("one");
        assert_eq!((newest.refresh_token.as_str(), newest.expires_at), ("r2", 2));
        assert!(catalog.grant("other").await.expect("none").is_none());
        let mut tx = catalog.begin().await.expect("tx");
        tx.execute("UPDATE wattlake_grant SET id = 'stolen'", vec![]).await.expect("moved");
        tx.commit().await.expect("commit");
        assert!(catalog.grant("stolen").await.is_err());
        // Gaps change their state, and are forgotten when they were closed.
        let at = |second: i64| Timestamp::from_second(second).expect("a time");
        let gap = |n: i64, state: GapState| Gap {
            id: uuid::Uuid::from_u128(n as u128),
            source_id: Some(source),
            entity_id: source,
            stream: "energy".into(),
            metric: "energy".into(),
            from: at(n * 900),
            to: at(n * 900 + 900),
            state,
            found_at: at(9_000),
            asked: 1,
            asked_at: at(9_000),
            proof: (state != GapState::Open).then(|| "seen".into()),
            cadence: (n != 3).then(|| SignedDuration::from_millis(900_500)),
        };
        catalog
            .save_gaps(&[gap(1, GapState::Open), gap(2, GapState::Open), gap(3, GapState::Open)])
            .await
            .expect("kept");
        catalog.save_gaps(&[gap(1, GapState::Filled), gap(3, GapState::Empty)]).await.expect("changed");
        let listed = async |filter: GapFilter<'_>, limit| {
            let gaps = catalog.gaps(&filter, limit).await.expect("gaps");
            gaps.iter().map(|gap| gap.id.as_u128() as i64).collect::<Vec<_>>()
        };
        let all = GapFilter::default();
        assert_eq!(
            catalog.gaps(&all, 2).await.expect("gaps"),
            [gap(3, GapState::Empty), gap(2, GapState::Open)]
        );
        let open = GapFilter { source: Some(source), state: Some(GapState::Open), ..all };
        assert_eq!(listed(open, 10).await, [2]);
        assert_eq!(listed(GapFilter { between: Some((at(900), at(1800))), ..all }, 10).await, [1]);
        assert_eq!(listed(GapFilter { after: Some(gap(3, GapState::Empty).id), ..all }, 1).await, [2]);
        let of_nobody = GapFilter { entity: Some(EntityId(uuid::Uuid::nil())), ..all };
        assert!(listed(of_nobody, 10).await.is_empty());
        // Those that begin together come by their ids, page by page as well.
        let twins = [4, 5].map(|n| Gap {
            id: uuid::Uuid::from_u128(n),
            source_id: None,
            stream: "live".into(),
            ..gap(2, GapState::Open)
        });
        catalog.save_gaps(&twins).await.expect("kept");
        assert_eq!(listed(GapFilter { stream: Some("live"), ..all }, 10).await, [4, 5]);
        assert_eq!(listed(GapFilter { after: Some(twins[0].id), ..all }, 10).await, [5, 1]);
        assert!(
            catalog.has_gap(twins[0].id).await.expect("asked")
                && !catalog.has_gap(uuid::Uuid::nil()).await.expect("asked")
        );
        assert_eq!(catalog.forget_closed_gaps(at(3_000)).await.expect("forgotten"), 1);
        assert_eq!(listed(all, 10).await, [3, 2, 4, 5]);
        // A job ends once.
        let job = Job {
            id: uuid::Uuid::now_v7(),
            source_id: source,
            from: at(0),
            to: at(86_400),
            state: JobState::Running,
            calls_planned: 7,
            error: None,
            created_at: at(9_000),
            updated_at: at(9_000),
        };
        catalog.create_job(&job).await.expect("kept");
        assert!(catalog.end_job(job.id, JobState::Failed, Some("why"), at(9_001)).await.expect("ended"));
        assert!(!catalog.end_job(job.id, JobState::Done, None, at(9_002)).await.expect("asked"));
        let ended = Job { state: JobState::Failed, error: Some("why".into()), updated_at: at(9_001), ..job };
        assert_eq!(catalog.jobs().await.expect("jobs"), [ended]);
        catalog.delete_source(source).await.expect("deleted");
        assert!(listed(all, 10).await.is_empty());
        assert!(catalog.jobs().await.expect("jobs").is_empty());
        assert_eq!(catalog.progress().await.expect("progress").len(), 1);
    }
}
