//! Clients look for constraints, indexes, comments and roles with queries that our planner cannot run. There are none of
//! these things, so a query over them is empty, and what is visibly empty need not be planned.

use std::{collections::HashSet, ops::ControlFlow};

use datafusion::sql::sqlparser::{
    ast::{
        BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList,
        FunctionArguments, GroupByExpr, Ident, JoinOperator, ObjectName, ObjectNamePart, Query, Select,
        SelectItem, SetExpr, Statement, TableFactor, TableWithJoins, UnaryOperator, Value, VisitMut,
        VisitorMut,
    },
    tokenizer::Span,
};

/// Tables of the catalog without rows.
const EMPTY: [&str; 35] = [
    "pg_attrdef",
    "pg_auth_members",
    "pg_collation",
    "pg_constraint",
    "pg_default_acl",
    "pg_depend",
    "pg_description",
    "pg_enum",
    "pg_event_trigger",
    "pg_extension",
    "pg_foreign_data_wrapper",
    "pg_foreign_server",
    "pg_foreign_table",
    "pg_index",
    "pg_indexes",
    "pg_inherits",
    "pg_init_privs",
    "pg_largeobject_metadata",
    "pg_locks",
    "pg_partitioned_table",
    "pg_policy",
    "pg_publication",
    "pg_publication_namespace",
    "pg_publication_rel",
    "pg_rewrite",
    "pg_seclabel",
    "pg_sequence",
    "pg_shdepend",
    "pg_shdescription",
    "pg_shseclabel",
    "pg_statistic",
    "pg_statistic_ext",
    "pg_subscription",
    "pg_trigger",
    "pg_user_mapping",
];

/// Functions that make one row out of none.
const AGGREGATES: [&str; 12] = [
    "count",
    "sum",
    "min",
    "max",
    "avg",
    "array_agg",
    "string_agg",
    "bool_and",
    "bool_or",
    "json_agg",
    "jsonb_agg",
    "every",
];

/// Columns that name functions; 0 is none of them.
const FUNCTION_COLUMNS: [&str; 4] = ["typinput", "typoutput", "typreceive", "typsend"];

/// Columns that are nowhere set: access rights and options.
const UNSET: [&str; 4] = ["attacl", "attoptions", "relacl", "reloptions"];

/// Takes out of a statement what there cannot be.
pub(super) fn simplify(statement: &mut Statement) {
    let _ = statement.visit(&mut Simplify { empty: HashSet::new() });
}

struct Simplify {
    /// Names of common table expressions without rows.
    empty: HashSet<String>,
}

impl VisitorMut for Simplify {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        // They are visited before the body that names them, each after the ones before it.
        for table in query.with.iter_mut().flat_map(|with| &mut with.cte_tables) {
            let _ = table.query.visit(self);
            if is_empty(&table.query) {
                self.empty.insert(table.alias.name.value.to_ascii_lowercase());
            }
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        if let SetExpr::Select(select) = &mut *query.body
            && self.is_without_rows(&select.from)
            && let Some(columns) = null_columns(select)
        {
            **select = nothing(select, columns);
            query.order_by = None;
        }
        if let SetExpr::Select(select) = &mut *query.body {
            tell_apart(&mut select.projection);
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Some(simpler) = simpler(expr) {
            *expr = simpler;
        }
        ControlFlow::Continue(())
    }
}

impl Simplify {
    fn is_without_rows(&self, from: &[TableWithJoins]) -> bool {
        from.iter().any(|table| {
            table.joins.iter().fold(self.is_factor_empty(&table.relation), |left, join| {
                let right = self.is_factor_empty(&join.relation);
                match join.join_operator {
                    JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::CrossJoin(_) => {
                        left || right
                    }
                    JoinOperator::Right(_) | JoinOperator::RightOuter(_) => right,
                    JoinOperator::FullOuter(_) => left && right,
                    _ => left,
                }
            })
        })
    }

    fn is_factor_empty(&self, factor: &TableFactor) -> bool {
        match factor {
            TableFactor::Table { name, args: None, .. } => {
                let parts: Vec<_> = name.0.iter().map(|part| part.to_string().to_ascii_lowercase()).collect();
                match &parts[..] {
                    [table] => EMPTY.contains(&table.as_str()) || self.empty.contains(table),
                    [.., schema, table] => schema == "pg_catalog" && EMPTY.contains(&table.as_str()),
                    [] => false,
                }
            }
            TableFactor::Derived { subquery, .. } => is_empty(subquery),
            TableFactor::NestedJoin { table_with_joins, .. } => {
                self.is_without_rows(std::slice::from_ref(table_with_joins))
            }
            _ => false,
        }
    }
}

/// Whether nothing but `WHERE false` is left of a query.
fn is_empty(query: &Query) -> bool {
    let SetExpr::Select(select) = &*query.body else { return false };
    select.from.is_empty() && select.selection == Some(literal(Value::Boolean(false)))
}

fn is_null(expr: &Expr) -> bool {
    matches!(expr, Expr::Value(value) if value.value == Value::Null)
}

fn literal(value: Value) -> Expr {
    Expr::Value(value.with_empty_span())
}

/// The columns of a query without rows, each `NULL` under its name; `None` where they are not known, or where an
/// aggregate makes a row.
fn null_columns(select: &Select) -> Option<Vec<SelectItem>> {
    let has_groups = !matches!(&select.group_by, GroupByExpr::Expressions(keys, _) if keys.is_empty());
    let column = |(i, item): (usize, &SelectItem)| {
        let (expr, name) = match item {
            SelectItem::ExprWithAlias { expr, alias } => (expr, alias.clone()),
            SelectItem::UnnamedExpr(expr) => {
                (expr, name_of(expr).unwrap_or_else(|| Ident::new(format!("column{i}"))))
            }
            _ => return None,
        };
        if !has_groups && is_aggregate(expr) {
            return None;
        }
        Some(SelectItem::ExprWithAlias { expr: literal(Value::Null), alias: name })
    };
    let columns: Vec<_> = select.projection.iter().enumerate().map(column).collect::<Option<_>>()?;
    // Names that come twice cannot be told apart, and nobody asks for them.
    let mut seen = HashSet::new();
    Some(
        columns
            .into_iter()
            .enumerate()
            .map(|(i, item)| match item {
                SelectItem::ExprWithAlias { expr, alias } if !seen.insert(alias.value.clone()) => {
                    SelectItem::ExprWithAlias { expr, alias: Ident::new(format!("{}_{i}", alias.value)) }
                }
                other => other,
            })
            .collect(),
    )
}

/// Gives columns that are the same a name each, which the planner asks for.
fn tell_apart(projection: &mut [SelectItem]) {
    let mut seen = HashSet::new();
    for (i, item) in projection.iter_mut().enumerate() {
        if let SelectItem::UnnamedExpr(expr) = item
            && !seen.insert(expr.to_string())
        {
            let name = name_of(expr).map_or_else(|| "column".to_owned(), |name| name.value);
            *item = SelectItem::ExprWithAlias {
                expr: expr.clone(),
                alias: Ident::new(format!("{name}_{}", i + 1)),
            };
        }
    }
}

/// The function that a query looks up the id of, as casts to `regproc` are rewritten to.
fn looked_up_function(query: &Query) -> Option<Expr> {
    let SetExpr::Select(select) = &*query.body else { return None };
    let (Some(Expr::BinaryOp { left, op: BinaryOperator::Eq, right }), [table]) =
        (&select.selection, &select.from[..])
    else {
        return None;
    };
    let is_lookup = table.relation.to_string() == "pg_catalog.pg_proc" && left.to_string() == "proname";
    let Expr::Value(value) = &**right else { return None };
    let Value::SingleQuotedString(name) = &value.value else { return None };
    let name = name.strip_prefix("pg_catalog.").unwrap_or(name);
    is_lookup.then(|| literal(Value::SingleQuotedString(name.to_owned())))
}

fn name_of(expr: &Expr) -> Option<Ident> {
    match expr {
        Expr::Identifier(name) => Some(name.clone()),
        Expr::CompoundIdentifier(parts) => parts.last().cloned(),
        Expr::Function(function) => function
            .name
            .0
            .last()
            .map(|part| Ident::new(part.to_string().trim_matches('"').to_ascii_lowercase())),
        Expr::Cast { expr, .. } | Expr::Nested(expr) => name_of(expr),
        _ => None,
    }
}

fn is_aggregate(expr: &Expr) -> bool {
    struct Find(bool);
    impl datafusion::sql::sqlparser::ast::Visitor for Find {
        type Break = ();

        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            if let Expr::Function(Function { name, over: None, .. }) = expr {
                let name =
                    name.0.last().map(|part| part.to_string().to_ascii_lowercase()).unwrap_or_default();
                self.0 |= AGGREGATES.contains(&name.as_str());
            }
            ControlFlow::Continue(())
        }
    }
    let mut find = Find(false);
    let _ = datafusion::sql::sqlparser::ast::Visit::visit(expr, &mut find);
    find.0
}

fn nothing(select: &Select, projection: Vec<SelectItem>) -> Select {
    Select {
        projection,
        from: Vec::new(),
        selection: Some(literal(Value::Boolean(false))),
        group_by: GroupByExpr::Expressions(Vec::new(), Vec::new()),
        having: None,
        distinct: None,
        named_window: Vec::new(),
        qualify: None,
        ..select.clone()
    }
}

/// A value looked up in the catalog, as an aggregate: the planner wants to see that there is one row at most.
fn at_most_one_row(query: &Query) -> Option<Query> {
    let SetExpr::Select(select) = &*query.body else { return None };
    let is_catalog = |table: &TableWithJoins| {
        let relations = std::iter::once(&table.relation).chain(table.joins.iter().map(|join| &join.relation));
        relations.into_iter().all(|relation| {
            let TableFactor::Table { name, .. } = relation else { return false };
            name.0.last().is_some_and(|name| name.to_string().to_ascii_lowercase().starts_with("pg_"))
        })
    };
    let has_groups = !matches!(&select.group_by, GroupByExpr::Expressions(keys, _) if keys.is_empty());
    let (expr, alias) = match &select.projection[..] {
        [SelectItem::UnnamedExpr(expr)] => (expr, name_of(expr)),
        [SelectItem::ExprWithAlias { expr, alias }] => (expr, Some(alias.clone())),
        _ => return None,
    };
    if select.from.is_empty() || !select.from.iter().all(is_catalog) || has_groups || is_aggregate(expr) {
        return None;
    }
    let expr = call("min", [expr.clone()]);
    let alias = alias.unwrap_or_else(|| Ident::new("value"));
    let select = Select { projection: vec![SelectItem::ExprWithAlias { expr, alias }], ..(**select).clone() };
    let body = Box::new(SetExpr::Select(Box::new(select)));
    Some(Query { body, order_by: None, limit_clause: None, ..query.clone() })
}

/// What an expression comes to, where that is plain, or as the planner knows it.
fn simpler(expr: &Expr) -> Option<Expr> {
    match expr {
        Expr::Subquery(query) if is_empty(query) => Some(literal(Value::Null)),
        Expr::Subquery(query) => at_most_one_row(query).map(|query| Expr::Subquery(Box::new(query))),
        Expr::Exists { subquery, negated } if is_empty(subquery) => Some(literal(Value::Boolean(*negated))),
        Expr::InSubquery { subquery, negated, .. } if is_empty(subquery) => {
            Some(literal(Value::Boolean(*negated)))
        }
        Expr::CompoundIdentifier(parts)
            if parts
                .last()
                .is_some_and(|column| UNSET.contains(&column.value.to_ascii_lowercase().as_str())) =>
        {
            Some(literal(Value::Null))
        }
        Expr::BinaryOp { left, op: BinaryOperator::StringConcat, right }
            if is_null(left) || is_null(right) =>
        {
            Some(literal(Value::Null))
        }
        Expr::Function(Function { name, args: FunctionArguments::List(list), .. })
            if name.to_string().to_ascii_lowercase().ends_with("array_to_string")
                && matches!(&list.args[..], [FunctionArg::Unnamed(FunctionArgExpr::Expr(first)), ..] if is_null(first)) =>
        {
            Some(literal(Value::Null))
        }
        // ARRAY(SELECT ...)
        Expr::Function(Function { name, args: FunctionArguments::Subquery(query), .. })
            if name.to_string().eq_ignore_ascii_case("array") && is_empty(query) =>
        {
            Some(literal(Value::SingleQuotedString("{}".to_owned())))
        }
        Expr::Like { negated, any: false, expr, pattern, escape_char: Some(escape) }
            if escape.value != Value::SingleQuotedString("\\".to_owned()) =>
        {
            let call =
                call("like_escape", [(**expr).clone(), (**pattern).clone(), Expr::Value(escape.clone())]);
            Some(if *negated { Expr::UnaryOp { op: UnaryOperator::Not, expr: Box::new(call) } } else { call })
        }
        Expr::BinaryOp { left, op: BinaryOperator::NotEq, right }
            if matches!(&**right, Expr::Value(zero) if matches!(&zero.value, Value::Number(n, _) if *n == "0"))
                && name_of(left).is_some_and(|name| FUNCTION_COLUMNS.contains(&name.value.as_str())) =>
        {
            let none = literal(Value::SingleQuotedString("-".to_owned()));
            Some(Expr::BinaryOp { left: left.clone(), op: BinaryOperator::NotEq, right: Box::new(none) })
        }
        Expr::BinaryOp { left, op: op @ (BinaryOperator::Eq | BinaryOperator::NotEq), right }
            if name_of(left).is_some_and(|name| FUNCTION_COLUMNS.contains(&name.value.as_str())) =>
        {
            let Expr::Subquery(query) = &**right else { return None };
            let name = looked_up_function(query)?;
            Some(Expr::BinaryOp { left: left.clone(), op: op.clone(), right: Box::new(name) })
        }
        _ => None,
    }
}

fn call<const N: usize>(name: &str, args: [Expr; N]) -> Expr {
    let args = args.into_iter().map(|arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg))).collect();
    Expr::Function(Function {
        name: ObjectName(vec![ObjectNamePart::Identifier(Ident::with_span(Span::empty(), name))]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args,
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::{dialect::PostgreSqlDialect, parser::Parser};

    use super::*;

    fn simplified(text: &str) -> String {
        let mut statements = Parser::parse_sql(&PostgreSqlDialect {}, text).expect("SQL");
        simplify(&mut statements[0]);
        statements[0].to_string()
    }

    #[test]
    fn a_query_over_nothing_is_nothing() {
        for (text, want) in [
            ("SELECT conname FROM pg_constraint WHERE contype = 'f'", "SELECT NULL AS conname WHERE false"),
            (
                "SELECT c.relname, count(*) AS n FROM pg_class c JOIN pg_catalog.pg_index i ON i.indrelid = c.oid GROUP BY 1",
                "SELECT NULL AS relname, NULL AS n WHERE false",
            ),
            ("SELECT count(*) FROM pg_constraint", "SELECT count(*) FROM pg_constraint"),
            ("SELECT * FROM pg_constraint", "SELECT * FROM pg_constraint"),
            ("SELECT 1 FROM other.pg_constraint", "SELECT 1 FROM other.pg_constraint"),
            (
                "SELECT relname FROM pg_class c LEFT JOIN pg_description d ON d.objoid = c.oid",
                "SELECT relname FROM pg_class c LEFT JOIN pg_description d ON d.objoid = c.oid",
            ),
            (
                "WITH x AS (SELECT unnest(conkey) AS k FROM pg_constraint), y AS (SELECT k FROM x) SELECT k FROM y ORDER BY k",
                "WITH x AS (SELECT NULL AS k WHERE false), y AS (SELECT NULL AS k WHERE false) SELECT NULL AS k WHERE false",
            ),
            (
                "SELECT (SELECT adbin FROM pg_attrdef LIMIT 1), EXISTS (SELECT 1 FROM pg_trigger) FROM pg_class",
                "SELECT NULL, false FROM pg_class",
            ),
            (
                "SELECT (SELECT typname FROM pg_type t WHERE t.oid = a.atttypid LIMIT 1) FROM pg_attribute a",
                "SELECT (SELECT min(typname) AS typname FROM pg_type t WHERE t.oid = a.atttypid) FROM pg_attribute a",
            ),
            (
                "SELECT a FROM sites WHERE NOT a LIKE 'pg/_%' ESCAPE '/'",
                "SELECT a FROM sites WHERE NOT like_escape(a, 'pg/_%', '/')",
            ),
            ("SELECT NULL, a, NULL, a.b, a.b", "SELECT NULL, a, NULL AS column_3, a.b, a.b AS b_5"),
            (
                "SELECT typinput = (SELECT oid FROM pg_catalog.pg_proc WHERE proname = 'pg_catalog.array_in') FROM pg_type",
                "SELECT typinput = 'array_in' FROM pg_type",
            ),
        ] {
            assert_eq!(simplified(text), want);
        }
    }
}
