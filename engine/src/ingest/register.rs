//! Registration of unknown entities as meters, so that nothing is lost and an operator can move them later.

use std::time::{Duration, Instant};

use serde_json::json;
use wattlake_catalog::{Category, EntityId, EntityType, MeterDraft, ReadingFrequency, SiteDraft, SiteId};

use super::{
    Collector, Ingest,
    collector::{Slot, Unknown},
};
use crate::{Result, files::MeterHint};

const WINDOW: Duration = Duration::from_secs(60);

impl Ingest {
    /// Makes meters of the collector's unknown entities on the site of that name; answers how many. Those beyond the
    /// limit of the minute are refused.
    pub(super) async fn register(&self, collector: &mut Collector, site: &str) -> Result<u64> {
        let catalog = self.engine.catalog().clone();
        let _turn = self.registrar.turn.lock().await;
        let fleet = catalog.fleet();
        let mut drafts = Vec::new();
        let mut registered = Vec::new();
        let mut site_id = None;
        for (index, slot) in collector.slots.iter_mut().enumerate() {
            let Slot::Unknown(unknown) = slot else { continue };
            let existing = match (&unknown.external_id, unknown.id) {
                (Some(name), _) => fleet.by_external_id(name),
                (None, Some(id)) => fleet.entity(id).map(|_| id),
                (None, None) => None,
            };
            // Another request was faster.
            if let Some(entity) = existing.and_then(|id| fleet.entity(id).map(|entity| (id, entity))) {
                *slot = Slot::Known(entity.0, entity.1.entity_type());
                continue;
            }
            if !self.take_permission() {
                let max = self.engine.settings().ingest.max_new_entities_per_minute;
                let message = format!(
                    "`{}` is new and {max} entities were registered in this minute already \
                     (ingest.max_new_entities_per_minute); send it again later",
                    unknown.name
                );
                *slot = Slot::Refused { kind: "too_many_new_entities", message };
                continue;
            }
            let site_id = match site_id {
                Some(id) => id,
                None => *site_id.insert(self.find_or_create_site(site).await?),
            };
            let hint = unknown.external_id.as_ref().and_then(|name| collector.hints.get(name)).copied();
            let draft = draft(unknown, hint, site_id);
            registered.push((index, draft.id));
            drafts.push(draft);
        }
        if drafts.is_empty() {
            return Ok(0);
        }
        // An owned task: a request that goes away does not tear the transaction.
        let count = drafts.len() as u64;
        tokio::spawn(async move { catalog.create_meters(&drafts).await })
            .await
            .map_err(|error| crate::Error::internal(format!("registration panicked: {error}")))??;
        for (index, id) in registered {
            if let Some(id) = id {
                collector.slots[index] = Slot::Known(id, EntityType::Meter);
            }
        }
        tracing::info!(count, site, "registered unknown entities as meters");
        metrics::counter!("wattlake_entities_registered_total").increment(count);
        Ok(count)
    }

    async fn find_or_create_site(&self, name: &str) -> Result<SiteId> {
        let catalog = self.engine.catalog().clone();
        let name = if name.trim().is_empty() { "default" } else { name };
        if let Some(site) = catalog.fleet().sites().find(|site| site.name == name) {
            return Ok(site.id);
        }
        let draft = SiteDraft {
            id: None,
            name: name.to_owned(),
            location: None,
            industry_type: None,
            description: Some("registered automatically".into()),
            metadata: serde_json::Map::new(),
            active: true,
        };
        let site = tokio::spawn(async move { catalog.create_site(&draft).await })
            .await
            .map_err(|error| crate::Error::internal(format!("registration panicked: {error}")))??;
        Ok(site.id)
    }

    /// Counts one registration against the limit of the minute.
    fn take_permission(&self) -> bool {
        let mut window = self.registrar.window.lock();
        if window.0.elapsed() >= WINDOW {
            *window = (Instant::now(), 0);
        }
        let allowed = window.1 < self.engine.settings().ingest.max_new_entities_per_minute;
        window.1 += u32::from(allowed);
        allowed
    }
}

fn draft(unknown: &Unknown, hint: Option<MeterHint>, site_id: SiteId) -> MeterDraft {
    let mut metadata = serde_json::Map::new();
    metadata.insert("autoRegistered".into(), json!(true));
    if let Some(external_id) = &unknown.external_id {
        metadata.insert("externalId".into(), json!(external_id));
    }
    MeterDraft {
        id: Some(unknown.id.unwrap_or_else(EntityId::random)),
        site_id,
        parent_meter_id: None,
        name: unknown.name.clone(),
        category: hint.map_or(Category::Cons, |hint| hint.category),
        reading_frequency: hint.and_then(|hint| hint.reading_frequency).unwrap_or(ReadingFrequency::Min15),
        capacity: None,
        description: None,
        metadata,
        active: true,
    }
}
