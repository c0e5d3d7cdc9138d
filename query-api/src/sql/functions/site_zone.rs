//! `site_zone(entity_id)`: the time zone of the site of a meter or an energy source.

use std::{
    collections::BTreeSet,
    hash::{Hash, Hasher},
    sync::Arc,
};

use arrow::{
    array::{AsArray, StringBuilder},
    datatypes::DataType,
};
use datafusion::{
    error::Result,
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
};
use wattlake_catalog::{EntityId, Fleet};

/// What is known of zones.
#[derive(Clone, Debug)]
pub(in crate::sql) struct Zones {
    pub fleet: Arc<Fleet>,
    /// The only entities that may be seen; `None`: all.
    pub allowed: Option<BTreeSet<EntityId>>,
    /// Of sites without one of their own.
    pub default: String,
}

impl Zones {
    /// `None` when nobody knows the entity.
    fn of(&self, entity: &str) -> Option<&str> {
        let id: EntityId = entity.parse().ok()?;
        if self.allowed.as_ref().is_some_and(|allowed| !allowed.contains(&id)) {
            return None;
        }
        Some(self.fleet.site_of(id)?.zone_name().unwrap_or(&self.default))
    }
}

pub(in crate::sql) fn udf(zones: Zones) -> ScalarUDF {
    let signature = Signature::exact(vec![DataType::Utf8], Volatility::Stable);
    ScalarUDF::new_from_impl(SiteZone { signature, zones })
}

#[derive(Debug)]
struct SiteZone {
    signature: Signature,
    zones: Zones,
}

/// A session has one.
impl PartialEq for SiteZone {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.zones.fleet, &other.zones.fleet)
    }
}

impl Eq for SiteZone {}

impl Hash for SiteZone {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl ScalarUDFImpl for SiteZone {
    fn name(&self) -> &'static str {
        "site_zone"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let ids = args.args[0].to_array(args.number_rows)?;
        // Neighbours are of the same entity.
        let mut known: Option<(&str, Option<&str>)> = None;
        let mut out = StringBuilder::new();
        for id in ids.as_string::<i32>() {
            let Some(id) = id else {
                out.append_null();
                continue;
            };
            let zone = match known {
                Some((same, zone)) if same == id => zone,
                _ => self.zones.of(id),
            };
            known = Some((id, zone));
            out.append_option(zone);
        }
        Ok(ColumnarValue::Array(Arc::new(out.finish())))
    }
}
