//! Creating, changing and deleting sites, meters and energy sources, and the rules between them.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::{
    Category, EnergySource, EnergySourceDraft, EntityId, Error, Fleet, Meter, MeterDraft, ReadingFrequency,
    Result, SecretKey, Site, SiteDraft, SiteId,
    db::{Db, Row, Tx, params},
    model::{Metadata, quarter_hourly},
    secrets::mask_metadata,
};

const SITE_COLUMNS: &str =
    "id, name, location, industry_type, description, metadata, active, created_at, updated_at";
const METER_COLUMNS: &str = "id, site_id, parent_meter_id, name, category, reading_frequency, capacity, \
                             description, metadata, active, created_at, updated_at";
const SOURCE_COLUMNS: &str =
    "id, meter_id, name, source_type, capacity, metadata, active, created_at, updated_at";

/// A site with its meters and their sources, created together.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OnboardingDraft {
    pub site: SiteDraft,
    #[serde(default)]
    pub meters: Vec<OnboardingMeter>,
}

/// A meter of an [`OnboardingDraft`]; its parent may be an earlier meter of the same body.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OnboardingMeter {
    pub id: Option<EntityId>,
    pub parent_meter_id: Option<EntityId>,
    pub name: String,
    pub category: Category,
    #[serde(default = "quarter_hourly")]
    pub reading_frequency: ReadingFrequency,
    pub capacity: Option<f64>,
    pub description: Option<String>,
    #[serde(default)]
    pub metadata: Metadata,
    pub active: Option<bool>,
    #[serde(default)]
    pub sources: Vec<OnboardingSource>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OnboardingSource {
    pub id: Option<EntityId>,
    pub name: String,
    pub source_type: String,
    pub capacity: Option<f64>,
    #[serde(default)]
    pub metadata: Metadata,
    pub active: Option<bool>,
}

/// Ids of entities created together, in the order of the request.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NewEntities {
    pub site_id: Option<SiteId>,
    pub meter_ids: Vec<EntityId>,
    pub source_ids: Vec<EntityId>,
}

/// Sites, meters and energy sources as they are stored, with sealed secrets.
pub(crate) type StoredFleet = (Vec<Site>, Vec<Meter>, Vec<EnergySource>);

/// Reads everything as it is stored.
pub(crate) async fn load_stored(db: &Db) -> Result<StoredFleet> {
    let sites = db.rows(&format!("SELECT {SITE_COLUMNS} FROM sites"), vec![]).await?;
    let meters = db.rows(&format!("SELECT {METER_COLUMNS} FROM meters"), vec![]).await?;
    let sources = db.rows(&format!("SELECT {SOURCE_COLUMNS} FROM energy_sources"), vec![]).await?;
    Ok((
        sites.iter().map(read_site).collect::<Result<_>>()?,
        meters.iter().map(read_meter).collect::<Result<_>>()?,
        sources.iter().map(read_source).collect::<Result<_>>()?,
    ))
}

/// Reads everything; secrets come back masked.
pub(crate) async fn load_fleet(db: &Db) -> Result<Fleet> {
    let (mut sites, mut meters, mut sources) = load_stored(db).await?;
    sites.iter_mut().for_each(|site| mask_metadata(&mut site.metadata));
    meters.iter_mut().for_each(|meter| mask_metadata(&mut meter.metadata));
    sources.iter_mut().for_each(|source| mask_metadata(&mut source.metadata));
    let external = db.rows("SELECT external_id, entity_id FROM wattlake_external_id", vec![]).await?;
    Ok(Fleet::new(
        sites,
        meters,
        sources,
        external
            .iter()
            .map(|row| Ok((row.text(0)?, EntityId(row.uuid(1)?))))
            .collect::<Result<HashMap<_, _>>>()?,
    ))
}

fn read_metadata(row: &Row, i: usize) -> Result<Metadata> {
    match row.json(i)? {
        Json::Object(map) => Ok(map),
        _ => Ok(Metadata::new()),
    }
}

fn read_site(row: &Row) -> Result<Site> {
    Ok(Site {
        id: SiteId(row.uuid(0)?),
        name: row.text(1)?,
        location: row.opt_text(2)?,
        industry_type: row.opt_text(3)?.map(|text| text.parse()).transpose()?,
        description: row.opt_text(4)?,
        metadata: read_metadata(row, 5)?,
        active: row.bool(6)?,
        created_at: row.time(7)?,
        updated_at: row.time(8)?,
    })
}

fn read_meter(row: &Row) -> Result<Meter> {
    Ok(Meter {
        id: EntityId(row.uuid(0)?),
        site_id: SiteId(row.uuid(1)?),
        parent_meter_id: row.opt_uuid(2)?.map(EntityId),
        name: row.text(3)?,
        category: row.text(4)?.parse()?,
        reading_frequency: row.text(5)?.parse()?,
        capacity: row.opt_real(6)?,
        description: row.opt_text(7)?,
        metadata: read_metadata(row, 8)?,
        active: row.bool(9)?,
        created_at: row.time(10)?,
        updated_at: row.time(11)?,
    })
}

fn read_source(row: &Row) -> Result<EnergySource> {
    Ok(EnergySource {
        id: EntityId(row.uuid(0)?),
        meter_id: EntityId(row.uuid(1)?),
        name: row.text(2)?,
        source_type: row.text(3)?,
        capacity: row.opt_real(4)?,
        metadata: read_metadata(row, 5)?,
        active: row.bool(6)?,
        created_at: row.time(7)?,
        updated_at: row.time(8)?,
    })
}

/// The catalog changes of one transaction.
pub(crate) struct Writer<'a> {
    pub tx: &'a mut Tx,
    pub key: &'a SecretKey,
    pub now: Timestamp,
}

impl Writer<'_> {
    pub(crate) async fn create_site(&mut self, draft: &SiteDraft) -> Result<SiteId> {
        draft.check()?;
        let id = draft.id.unwrap_or_else(SiteId::random);
        self.refuse_existing("sites", "site", id.0).await?;
        let SiteDraft { name, location, industry_type, description, mut metadata, active, .. } =
            draft.clone();
        self.key.seal_metadata(&mut metadata, None, id.0)?;
        let (created_at, updated_at) = (self.now, self.now);
        let site =
            Site { id, name, location, industry_type, description, metadata, active, created_at, updated_at };
        self.insert_site(&site).await?;
        Ok(id)
    }

    /// Stores a site as it is, with sealed secrets.
    pub(crate) async fn insert_site(&mut self, site: &Site) -> Result<()> {
        let sql = format!("INSERT INTO sites ({SITE_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)");
        let values = params![
            site.id,
            site.name.as_str(),
            site.location.clone(),
            site.industry_type.map(|t| t.as_str()),
            site.description.clone(),
            Json::Object(site.metadata.clone()),
            site.active,
            site.created_at,
            site.updated_at
        ];
        self.tx.execute(&sql, values).await.map(drop)
    }

    pub(crate) async fn update_site(&mut self, id: SiteId, draft: &SiteDraft) -> Result<()> {
        draft.check()?;
        let metadata = self.seal_again("sites", id.0, &draft.metadata).await?;
        let sql = "UPDATE sites SET name = $2, location = $3, industry_type = $4, description = $5, \
                   metadata = $6, active = $7, updated_at = $8 WHERE id = $1";
        let values = params![
            id,
            draft.name.as_str(),
            draft.location.clone(),
            draft.industry_type.map(|t| t.as_str()),
            draft.description.clone(),
            metadata,
            draft.active,
            self.now
        ];
        self.expect_found(sql, values, "site", id.0).await
    }

    pub(crate) async fn create_meter(&mut self, draft: &MeterDraft) -> Result<EntityId> {
        draft.check()?;
        let id = draft.id.unwrap_or_else(EntityId::random);
        self.refuse_existing_entity(id).await?;
        self.check_place(id, draft).await?;
        let draft = draft.clone();
        let mut metadata = draft.metadata;
        self.key.seal_metadata(&mut metadata, None, id.0)?;
        let meter = Meter {
            id,
            site_id: draft.site_id,
            parent_meter_id: draft.parent_meter_id,
            name: draft.name,
            category: draft.category,
            reading_frequency: draft.reading_frequency,
            capacity: draft.capacity,
            description: draft.description,
            metadata,
            active: draft.active,
            created_at: self.now,
            updated_at: self.now,
        };
        self.insert_meter(&meter).await?;
        Ok(id)
    }

    /// Stores a meter as it is, with sealed secrets; its site and parent are there.
    pub(crate) async fn insert_meter(&mut self, meter: &Meter) -> Result<()> {
        let sql = format!(
            "INSERT INTO meters ({METER_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
        );
        let values = params![
            meter.id,
            meter.site_id,
            meter.parent_meter_id,
            meter.name.as_str(),
            meter.category.as_str(),
            meter.reading_frequency.as_str(),
            meter.capacity,
            meter.description.clone(),
            Json::Object(meter.metadata.clone()),
            meter.active,
            meter.created_at,
            meter.updated_at
        ];
        self.tx.execute(&sql, values).await?;
        self.write_external_id(meter.id, &meter.metadata).await
    }

    pub(crate) async fn update_meter(&mut self, id: EntityId, draft: &MeterDraft) -> Result<()> {
        draft.check()?;
        self.check_place(id, draft).await?;
        let metadata = self.seal_again("meters", id.0, &draft.metadata).await?;
        let sql = "UPDATE meters SET site_id = $2, parent_meter_id = $3, name = $4, category = $5, \
                   reading_frequency = $6, capacity = $7, description = $8, metadata = $9, active = $10, \
                   updated_at = $11 WHERE id = $1";
        let values = params![
            id,
            draft.site_id,
            draft.parent_meter_id,
            draft.name.as_str(),
            draft.category.as_str(),
            draft.reading_frequency.as_str(),
            draft.capacity,
            draft.description.clone(),
            metadata,
            draft.active,
            self.now
        ];
        self.expect_found(sql, values, "meter", id.0).await?;
        self.write_external_id(id, &draft.metadata).await
    }

    pub(crate) async fn create_source(&mut self, draft: &EnergySourceDraft) -> Result<EntityId> {
        draft.check()?;
        let id = draft.id.unwrap_or_else(EntityId::random);
        self.refuse_existing_entity(id).await?;
        self.expect_meter(draft.meter_id).await?;
        let EnergySourceDraft { meter_id, name, source_type, capacity, mut metadata, active, .. } =
            draft.clone();
        self.key.seal_metadata(&mut metadata, None, id.0)?;
        let (created_at, updated_at) = (self.now, self.now);
        let source = EnergySource {
            id,
            meter_id,
            name,
            source_type,
            capacity,
            metadata,
            active,
            created_at,
            updated_at,
        };
        self.insert_source(&source).await?;
        Ok(id)
    }

    /// Stores an energy source as it is, with sealed secrets; its meter is there.
    pub(crate) async fn insert_source(&mut self, source: &EnergySource) -> Result<()> {
        let sql = format!(
            "INSERT INTO energy_sources ({SOURCE_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
        );
        let values = params![
            source.id,
            source.meter_id,
            source.name.as_str(),
            source.source_type.as_str(),
            source.capacity,
            Json::Object(source.metadata.clone()),
            source.active,
            source.created_at,
            source.updated_at
        ];
        self.tx.execute(&sql, values).await?;
        self.write_external_id(source.id, &source.metadata).await
    }

    pub(crate) async fn update_source(&mut self, id: EntityId, draft: &EnergySourceDraft) -> Result<()> {
        draft.check()?;
        self.expect_meter(draft.meter_id).await?;
        let metadata = self.seal_again("energy_sources", id.0, &draft.metadata).await?;
        let sql = "UPDATE energy_sources SET meter_id = $2, name = $3, source_type = $4, capacity = $5, \
                   metadata = $6, active = $7, updated_at = $8 WHERE id = $1";
        let values = params![
            id,
            draft.meter_id,
            draft.name.as_str(),
            draft.source_type.as_str(),
            draft.capacity,
            metadata,
            draft.active,
            self.now
        ];
        self.expect_found(sql, values, "energy source", id.0).await?;
        self.write_external_id(id, &draft.metadata).await
    }

    /// Changes fields of the metadata as they are now. The time of the last change stays: it is that of what users change.
    pub(crate) async fn note_source(&mut self, id: EntityId, fields: &Metadata) -> Result<()> {
        let lock = if matches!(self.tx, Tx::Postgres(_)) { " FOR UPDATE" } else { "" };
        let sql = format!("SELECT metadata FROM energy_sources WHERE id = $1{lock}");
        let row = self.tx.row(&sql, params![id]).await?;
        let row = row.ok_or_else(|| Error::not_found(format!("no energy source {id}")))?;
        let mut metadata = row.json(0)?.as_object().cloned().unwrap_or_default();
        for (name, value) in fields {
            match value {
                Json::Null => drop(metadata.remove(name)),
                value => drop(metadata.insert(name.clone(), value.clone())),
            }
        }
        let sql = "UPDATE energy_sources SET metadata = $2 WHERE id = $1";
        self.tx.execute(sql, params![id, Json::Object(metadata)]).await?;
        Ok(())
    }

    /// Creates a site and everything on it.
    pub(crate) async fn onboard(&mut self, draft: &OnboardingDraft) -> Result<NewEntities> {
        let site_id = self.create_site(&draft.site).await?;
        let mut created = NewEntities { site_id: Some(site_id), ..NewEntities::default() };
        for meter in &draft.meters {
            let id = self
                .create_meter(&MeterDraft {
                    id: meter.id,
                    site_id,
                    parent_meter_id: meter.parent_meter_id,
                    name: meter.name.clone(),
                    category: meter.category,
                    reading_frequency: meter.reading_frequency,
                    capacity: meter.capacity,
                    description: meter.description.clone(),
                    metadata: meter.metadata.clone(),
                    active: meter.active.unwrap_or(true),
                })
                .await
                .map_err(|error| Error::new(error.kind, format!("meter `{}`: {error}", meter.name)))?;
            created.meter_ids.push(id);
            for source in &meter.sources {
                let source_id = self
                    .create_source(&EnergySourceDraft {
                        id: source.id,
                        meter_id: id,
                        name: source.name.clone(),
                        source_type: source.source_type.clone(),
                        capacity: source.capacity,
                        metadata: source.metadata.clone(),
                        active: source.active.unwrap_or(true),
                    })
                    .await
                    .map_err(|error| {
                        Error::new(error.kind, format!("energy source `{}`: {error}", source.name))
                    })?;
                created.source_ids.push(source_id);
            }
        }
        Ok(created)
    }

    pub(crate) async fn delete_site(&mut self, id: SiteId, cascade: bool) -> Result<()> {
        let meters = self.tx.rows("SELECT id FROM meters WHERE site_id = $1", params![id]).await?;
        if !meters.is_empty() && !cascade {
            return Err(Error::conflict(format!(
                "site {id} still has {} meters; delete them first or use ?cascade=true",
                meters.len()
            )));
        }
        let meters = meters.iter().map(|row| Ok(EntityId(row.uuid(0)?))).collect::<Result<Vec<_>>>()?;
        self.delete_meters(&meters).await?;
        self.expect_found("DELETE FROM sites WHERE id = $1", params![id], "site", id.0).await
    }

    pub(crate) async fn delete_meter(&mut self, id: EntityId, cascade: bool) -> Result<()> {
        self.expect_meter(id).await.map_err(|_| Error::not_found(format!("no meter {id}")))?;
        let mut doomed = vec![id];
        let mut next = 0;
        while let Some(meter) = doomed.get(next).copied() {
            let sql = "SELECT id FROM meters WHERE parent_meter_id = $1";
            for row in self.tx.rows(sql, params![meter]).await? {
                doomed.push(EntityId(row.uuid(0)?));
            }
            next += 1;
        }
        let sources =
            self.tx.rows("SELECT id FROM energy_sources WHERE meter_id = $1", params![id]).await?.len();
        if !cascade && (doomed.len() > 1 || sources > 0) {
            return Err(Error::conflict(format!(
                "meter {id} still has {} meters below it and {sources} energy sources; delete them first or use \
                 ?cascade=true",
                doomed.len() - 1
            )));
        }
        self.delete_meters(&doomed).await
    }

    pub(crate) async fn delete_source(&mut self, id: EntityId) -> Result<()> {
        self.tx.execute("DELETE FROM wattlake_external_id WHERE entity_id = $1", params![id]).await?;
        let cursors = format!("source/{id}/%");
        self.tx.execute("DELETE FROM wattlake_progress WHERE key LIKE $1", params![cursors]).await?;
        for table in ["wattlake_gap", "wattlake_job"] {
            self.tx.execute(&format!("DELETE FROM {table} WHERE source_id = $1"), params![id]).await?;
        }
        self.tx.execute("DELETE FROM wattlake_gap WHERE entity_id = $1", params![id]).await?;
        let sql = "DELETE FROM energy_sources WHERE id = $1";
        self.expect_found(sql, params![id], "energy source", id.0).await
    }

    async fn delete_meters(&mut self, meters: &[EntityId]) -> Result<()> {
        for id in meters {
            let sources =
                self.tx.rows("SELECT id FROM energy_sources WHERE meter_id = $1", params![*id]).await?;
            for row in sources {
                self.delete_source(EntityId(row.uuid(0)?)).await?;
            }
            self.tx.execute("DELETE FROM wattlake_external_id WHERE entity_id = $1", params![*id]).await?;
            self.tx.execute("UPDATE meters SET parent_meter_id = NULL WHERE id = $1", params![*id]).await?;
        }
        for id in meters {
            self.tx.execute("DELETE FROM wattlake_gap WHERE entity_id = $1", params![*id]).await?;
            self.tx.execute("DELETE FROM meters WHERE id = $1", params![*id]).await?;
        }
        Ok(())
    }

    /// The site exists, the parent is on the same site, and no cycle arises.
    async fn check_place(&mut self, id: EntityId, draft: &MeterDraft) -> Result<()> {
        let site = draft.site_id;
        if self.tx.row("SELECT id FROM sites WHERE id = $1", params![site]).await?.is_none() {
            return Err(Error::invalid(format!("site {site} does not exist")));
        }
        let rows =
            self.tx.rows("SELECT id, parent_meter_id FROM meters WHERE site_id = $1", params![site]).await?;
        let mut parents = HashMap::new();
        for row in &rows {
            parents.insert(EntityId(row.uuid(0)?), row.opt_uuid(1)?.map(EntityId));
        }
        if let Some(parent) = draft.parent_meter_id {
            if !parents.contains_key(&parent) {
                return Err(
                    match self.tx.row("SELECT site_id FROM meters WHERE id = $1", params![parent]).await? {
                        Some(row) => Error::invalid(format!(
                            "parent meter {parent} is on site {}, not on {site}; a meter tree stays on one site",
                            row.uuid(0)?
                        )),
                        None => Error::invalid(format!("parent meter {parent} does not exist")),
                    },
                );
            }
            let mut seen = HashSet::from([id]);
            let mut above = Some(parent);
            while let Some(meter) = above {
                if !seen.insert(meter) {
                    return Err(Error::invalid(format!(
                        "parent meter {parent} is below meter {id} itself; that would be a cycle"
                    )));
                }
                above = parents.get(&meter).copied().flatten();
            }
        }
        let sql = "SELECT id FROM meters WHERE parent_meter_id = $1 AND site_id <> $2";
        if self.tx.row(sql, params![id, site]).await?.is_some() {
            return Err(Error::invalid(format!(
                "meter {id} has meters below it on its old site; move them first"
            )));
        }
        Ok(())
    }

    async fn expect_meter(&mut self, id: EntityId) -> Result<()> {
        match self.tx.row("SELECT id FROM meters WHERE id = $1", params![id]).await? {
            Some(_) => Ok(()),
            None => Err(Error::invalid(format!("meter {id} does not exist"))),
        }
    }

    async fn refuse_existing(&mut self, table: &str, what: &str, id: uuid::Uuid) -> Result<()> {
        let sql = format!("SELECT id FROM {table} WHERE id = $1");
        match self.tx.row(&sql, params![id]).await? {
            Some(_) => Err(Error::conflict(format!("{what} {id} already exists"))),
            None => Ok(()),
        }
    }

    /// Meters and sources share the measurement key, so their ids must not meet.
    async fn refuse_existing_entity(&mut self, id: EntityId) -> Result<()> {
        self.refuse_existing("meters", "meter", id.0).await?;
        self.refuse_existing("energy_sources", "energy source", id.0).await
    }

    async fn seal_again(&mut self, table: &str, id: uuid::Uuid, metadata: &Metadata) -> Result<Json> {
        let sql = format!("SELECT metadata FROM {table} WHERE id = $1");
        let before = self.tx.row(&sql, params![id]).await?.map(|row| row.json(0)).transpose()?;
        let mut metadata = metadata.clone();
        self.key.seal_metadata(&mut metadata, before.as_ref().and_then(Json::as_object), id)?;
        Ok(Json::Object(metadata))
    }

    async fn write_external_id(&mut self, id: EntityId, metadata: &Metadata) -> Result<()> {
        let Some(name) = metadata.get("externalId").and_then(Json::as_str) else {
            self.tx.execute("DELETE FROM wattlake_external_id WHERE entity_id = $1", params![id]).await?;
            return Ok(());
        };
        let sql = "SELECT entity_id FROM wattlake_external_id WHERE external_id = $1";
        match self.tx.row(sql, params![name]).await? {
            Some(row) if row.uuid(0)? == id.0 => Ok(()),
            Some(row) => Err(Error::conflict(format!(
                "external id `{name}` already belongs to entity {}",
                row.uuid(0)?
            ))),
            None => {
                self.tx.execute("DELETE FROM wattlake_external_id WHERE entity_id = $1", params![id]).await?;
                let sql = "INSERT INTO wattlake_external_id (external_id, entity_id) VALUES ($1, $2)";
                self.tx.execute(sql, params![name, id]).await?;
                Ok(())
            }
        }
    }

    async fn expect_found(
        &mut self,
        sql: &str,
        values: Vec<crate::db::Value>,
        what: &str,
        id: uuid::Uuid,
    ) -> Result<()> {
        match self.tx.execute(sql, values).await? {
            0 => Err(Error::not_found(format!("no {what} {id}"))),
            _ => Ok(()),
        }
    }
}
