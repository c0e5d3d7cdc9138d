//! What bodies and parameters are made of.

use utoipa::openapi::{
    Ref, RefOr, Schema, Type,
    schema::{ArrayBuilder, KnownFormat, ObjectBuilder, SchemaFormat, SchemaType},
};

pub(super) type Part = RefOr<Schema>;

pub(super) fn of_type(kind: Type) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(SchemaType::new(kind))
}

pub(super) fn text() -> Part {
    of_type(Type::String).into()
}

pub(super) fn named(names: &[&str]) -> Part {
    of_type(Type::String).enum_values(Some(names.iter().copied())).into()
}

/// One of some names, or null.
pub(super) fn named_or_null(names: &[&str]) -> Part {
    let names = names.iter().map(|name| serde_json::json!(name)).chain([serde_json::Value::Null]);
    let kinds = SchemaType::from_iter([Type::String, Type::Null]);
    ObjectBuilder::new().schema_type(kinds).enum_values(Some(names)).into()
}

pub(super) fn uuid() -> Part {
    of_type(Type::String).format(Some(SchemaFormat::Custom("uuid".to_owned()))).into()
}

pub(super) fn instant() -> Part {
    of_type(Type::String).format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime))).into()
}

pub(super) fn number() -> Part {
    of_type(Type::Number).into()
}

pub(super) fn integer() -> Part {
    of_type(Type::Integer).into()
}

pub(super) fn boolean() -> Part {
    of_type(Type::Boolean).into()
}

/// Any object.
pub(super) fn object() -> Part {
    of_type(Type::Object).into()
}

pub(super) fn list(items: Part) -> Part {
    ArrayBuilder::new().items(items).into()
}

pub(super) fn schema(name: &str) -> Part {
    RefOr::Ref(Ref::from_schema_name(name))
}

/// Of a type, or null.
pub(super) fn nullable(kind: Type) -> Part {
    ObjectBuilder::new().schema_type(SchemaType::from_iter([kind, Type::Null])).into()
}

/// An object with fields; those whose name ends in `!` are always there.
pub(super) fn record(fields: Vec<(&str, Part)>) -> Part {
    let mut object = of_type(Type::Object);
    for (name, part) in fields {
        let plain = name.trim_end_matches('!');
        object = object.property(plain, part);
        if plain != name {
            object = object.required(plain);
        }
    }
    object.into()
}
