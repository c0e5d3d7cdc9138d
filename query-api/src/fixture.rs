//! Archives for tests.

pub(crate) mod history;

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicI64},
};

use wattlake_catalog::{Catalog, Category, EntityId, MeterDraft, ReadingFrequency, SiteDraft, SiteId};
use wattlake_config::Settings;
use wattlake_engine::{Clock, DataDir, Engine, Storage};

/// An engine over a new data directory whose clock stands at a time, microseconds since 1970 UTC.
pub(crate) async fn engine(dir: &Path, now: i64) -> Arc<Engine> {
    let mut settings = Settings::default();
    settings.data_dir.0 = dir.to_owned();
    let data_dir = DataDir::acquire(dir).expect("lock");
    let storage = Storage::open(&settings).expect("storage");
    let key = dir.join("secrets.key");
    let catalog = Catalog::open(&settings.catalog_url(), &key, storage.data_path()).await.expect("catalog");
    let clock = Clock::Fixed(Arc::new(AtomicI64::new(now)));
    Engine::start(&settings, data_dir, storage, Arc::new(catalog), clock).await.expect("engine")
}

/// A site, in a zone of its own if one is given.
pub(crate) async fn site(engine: &Engine, name: &str, zone: Option<&str>) -> SiteId {
    let metadata = zone.map_or(serde_json::json!({}), |zone| serde_json::json!({ "timezone": zone }));
    let draft = SiteDraft {
        id: None,
        name: name.to_owned(),
        location: None,
        industry_type: None,
        description: None,
        metadata: metadata.as_object().cloned().unwrap_or_default(),
        active: true,
    };
    engine.catalog().create_site(&draft).await.expect("site").id
}

/// A consumption meter at a site.
pub(crate) async fn meter(
    engine: &Engine,
    site_id: SiteId,
    name: &str,
    reading_frequency: ReadingFrequency,
) -> EntityId {
    let draft = MeterDraft {
        id: None,
        site_id,
        parent_meter_id: None,
        name: name.to_owned(),
        category: Category::Cons,
        reading_frequency,
        capacity: None,
        description: None,
        metadata: serde_json::Map::new(),
        active: true,
    };
    engine.catalog().create_meter(&draft).await.expect("meter").id
}
