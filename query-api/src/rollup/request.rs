//! The parameters of a rollup, checked.

use std::{collections::BTreeSet, str::FromStr};

use jiff::{Timestamp, tz::TimeZone};
use serde::Deserialize;
use wattlake_catalog::{EntityId, Quality, SiteId, SnapshotAt};

use super::{aggregate::Aggregation, bucket::Width, resolve::Mode};
use crate::{
    error::{ApiError, Result},
    time::{parse_as_of, parse_instant, parse_zone},
};

/// The query string of `/api/rollup`; repeatable keys are taken apart before.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RollupParams {
    #[serde(default)]
    pub site_id: Vec<String>,
    #[serde(default)]
    pub meter_id: Vec<String>,
    #[serde(default)]
    pub entity_id: Vec<String>,
    pub metric: Option<String>,
    pub bucket: Option<String>,
    pub from: Option<String>,
    pub to: Option<String>,
    pub tz: Option<String>,
    pub by: Option<String>,
    pub agg: Option<String>,
    pub mode: Option<String>,
    pub fill: Option<String>,
    pub quality: Option<String>,
    pub as_of: Option<String>,
    pub format: Option<String>,
}

impl RollupParams {
    /// Whether no time in it depends on when it is asked.
    pub(crate) fn is_absolute(&self) -> bool {
        let is_fixed = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.contains("now"));
        is_fixed(&self.from)
            && is_fixed(&self.to)
            && self.as_of.as_deref().is_none_or(|as_of| !as_of.contains("now"))
    }
}

/// What one row of the answer stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupBy {
    Total,
    Category,
    Site,
    Meter,
    Entity,
}

/// What stands in buckets without readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    None,
    Null,
    Previous,
    Linear,
    Zero,
}

/// A checked request.
#[derive(Clone, Debug)]
pub(crate) struct RollupRequest {
    pub sites: Vec<SiteId>,
    pub meters: Vec<EntityId>,
    pub entities: Vec<EntityId>,
    pub metric: String,
    pub width: Width,
    pub from: Timestamp,
    pub to: Timestamp,
    /// One zone for all; `None`: each site's own.
    pub zone: Option<TimeZone>,
    pub by: GroupBy,
    pub aggregation: Aggregation,
    pub mode: Mode,
    pub fill: Fill,
    pub qualities: BTreeSet<Quality>,
    pub as_of: Option<SnapshotAt>,
}

impl RollupRequest {
    /// Checks the parameters. Plain dates are read in `tz`, else in `default_zone`.
    pub(crate) fn new(params: &RollupParams, default_zone: &TimeZone, now: Timestamp) -> Result<Self> {
        let zone = params.tz.as_deref().map(|name| parse_zone("tz", name)).transpose()?;
        let date_zone = zone.clone().unwrap_or_else(|| default_zone.clone());
        let instant = |name: &str, text: &Option<String>| -> Result<Option<Timestamp>> {
            text.as_deref().map(|text| parse_instant(name, text, &date_zone, now)).transpose()
        };
        let metric = params.metric.clone().filter(|metric| !metric.is_empty());
        let qualities = params.quality.as_deref().unwrap_or("good,estimated");
        Ok(Self {
            sites: ids("siteId", &params.site_id)?,
            meters: ids("meterId", &params.meter_id)?,
            entities: ids("entityId", &params.entity_id)?,
            metric: metric
                .ok_or_else(|| ApiError::invalid("metric is required, for example metric=power"))?,
            width: params.bucket.as_deref().unwrap_or("1d").parse()?,
            from: instant("from", &params.from)?
                .ok_or_else(|| ApiError::invalid("from is required, for example from=now-7d"))?,
            to: instant("to", &params.to)?.unwrap_or(now),
            zone,
            by: choice(
                "by",
                params.by.as_deref(),
                GroupBy::Total,
                &[
                    ("total", GroupBy::Total),
                    ("category", GroupBy::Category),
                    ("site", GroupBy::Site),
                    ("meter", GroupBy::Meter),
                    ("entity", GroupBy::Entity),
                ],
            )?,
            aggregation: choice(
                "agg",
                params.agg.as_deref(),
                Aggregation::Default,
                &[
                    ("avg", Aggregation::Avg),
                    ("sum", Aggregation::Sum),
                    ("min", Aggregation::Min),
                    ("max", Aggregation::Max),
                    ("count", Aggregation::Count),
                    ("first", Aggregation::First),
                    ("last", Aggregation::Last),
                    ("p50", Aggregation::Percentile(50)),
                    ("p95", Aggregation::Percentile(95)),
                ],
            )?,
            mode: choice(
                "mode",
                params.mode.as_deref(),
                Mode::Auto,
                &[
                    ("auto", Mode::Auto),
                    ("own", Mode::Own),
                    ("leaves", Mode::Leaves),
                    ("residual", Mode::Residual),
                ],
            )?,
            fill: choice(
                "fill",
                params.fill.as_deref(),
                Fill::None,
                &[
                    ("none", Fill::None),
                    ("null", Fill::Null),
                    ("prev", Fill::Previous),
                    ("linear", Fill::Linear),
                    ("zero", Fill::Zero),
                ],
            )?,
            qualities: qualities.split(',').map(|q| q.trim().parse()).collect::<Result<_, _>>()?,
            as_of: params
                .as_of
                .as_deref()
                .map(|text| parse_as_of("asOf", text, &date_zone, now))
                .transpose()?,
        })
    }
}

fn ids<T: FromStr<Err = wattlake_catalog::Error>>(name: &str, texts: &[String]) -> Result<Vec<T>> {
    texts
        .iter()
        .map(|text| text.parse().map_err(|error| ApiError::invalid(format!("{name}: {error}"))))
        .collect()
}

fn choice<T: Copy>(name: &str, text: Option<&str>, default: T, valid: &[(&str, T)]) -> Result<T> {
    let Some(text) = text else { return Ok(default) };
    valid.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<_> = valid.iter().map(|(word, _)| *word).collect();
        ApiError::invalid(format!("{name}: unknown value `{text}`; valid are {}", words.join(", ")))
    })
}
