//! The things that operations take and answer.

use utoipa::openapi::Type;

use super::parts::*;

/// What a client may say of a thing in the catalog, and what is stored of it besides.
fn thing(id: Part, says: impl Fn() -> Vec<(&'static str, Part)>) -> [Part; 3] {
    let plain = |fields: Vec<(&'static str, Part)>| {
        fields.into_iter().map(|(name, part)| (name.trim_end_matches('!'), part))
    };
    let mut draft = says();
    draft.push(("id", id.clone()));
    let mut stored: Vec<_> = says();
    stored.extend([("id!", id), ("createdAt!", instant()), ("updatedAt!", instant())]);
    [record(draft), record(plain(says()).collect()), record(stored)]
}

pub(super) fn schemas() -> Vec<(&'static str, Part)> {
    let site = thing(uuid(), || {
        vec![
            ("name!", text()),
            ("location", nullable(Type::String)),
            (
                "industryType",
                named_or_null(&[
                    "residential",
                    "commercial",
                    "industrial",
                    "agricultural",
                    "public",
                    "utility",
                    "other",
                ]),
            ),
            ("description", nullable(Type::String)),
            ("metadata", object()),
            ("active", boolean()),
        ]
    });
    let meter = thing(uuid(), || {
        vec![
            ("siteId!", uuid()),
            ("parentMeterId", nullable(Type::String)),
            ("name!", text()),
            ("category!", named(&["PROD", "CONS", "STOR", "INJ"])),
            ("readingFrequency", text()),
            ("capacity", nullable(Type::Number)),
            ("description", nullable(Type::String)),
            ("metadata", object()),
            ("active", boolean()),
        ]
    });
    let source = thing(uuid(), || {
        vec![
            ("meterId!", uuid()),
            ("name!", text()),
            ("sourceType!", text()),
            ("capacity", nullable(Type::Number)),
            ("metadata", object()),
            ("active", boolean()),
        ]
    });
    let [site_draft, site_patch, site] = site;
    let [meter_draft, meter_patch, meter] = meter;
    let [source_draft, source_patch, source] = source;
    let reading = record(vec![
        ("entityId!", uuid()),
        ("timestamp!", text()),
        ("metric!", text()),
        ("value!", number()),
        ("unit", text()),
        ("quality", named(&["good", "estimated", "bad"])),
        ("metadata", object()),
    ]);
    let report =
        record(vec![("accepted!", integer()), ("rejected!", integer()), ("errors!", list(object()))]);
    let row = record(vec![
        ("id!", uuid()),
        ("entityId!", uuid()),
        ("entityType!", named(&["meter", "energy_source"])),
        ("timestamp!", instant()),
        ("metric!", text()),
        ("value!", number()),
        ("unit!", text()),
        ("quality!", named(&["good", "estimated", "bad"])),
        ("metadata", nullable(Type::Object)),
        ("createdAt!", instant()),
    ]);
    let latest = record(vec![
        ("entityId!", uuid()),
        ("entityType!", named(&["meter", "energy_source"])),
        ("metric!", text()),
        ("timestamp!", instant()),
        ("value!", number()),
        ("unit!", text()),
        ("quality!", text()),
    ]);
    let error = record(vec![("kind!", text()), ("message!", text()), ("details", list(object()))]);
    vec![
        ("SiteDraft", site_draft),
        ("SitePatch", site_patch),
        ("Site", site),
        ("MeterDraft", meter_draft),
        ("MeterPatch", meter_patch),
        ("Meter", meter),
        ("EnergySourceDraft", source_draft),
        ("EnergySourcePatch", source_patch),
        ("EnergySource", source),
        ("Reading", reading),
        ("WriteReport", report),
        ("Row", row),
        ("Latest", latest),
        (
            "Snapshot",
            record(vec![("name!", text()), ("snapshotId!", integer()), ("committedAt!", instant())]),
        ),
        ("Error", record(vec![("error!", error)])),
    ]
}
