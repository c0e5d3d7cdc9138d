//! The gate before planning: one query, nothing else, of a size that cannot hurt.
//!
//! Planners walk expressions recursively, so a flat chain of thousands of operators would overflow a stack. Tokens are
//! counted before anything is parsed.

use datafusion::sql::{
    parser::{DFParserBuilder, Statement},
    sqlparser::{
        ast::Statement as SqlStatement,
        dialect::PostgreSqlDialect,
        tokenizer::{Token, Tokenizer},
    },
};

use crate::error::{ApiError, Kind, Result};

/// The names under which everything is found.
pub(crate) const CATALOG: &str = "wattlake";
pub(crate) const SCHEMA: &str = "public";

const TEXT_BYTES_MAX: usize = 256 << 10;
const TOKENS_MAX: usize = 50_000;
const OPERATORS_MAX: usize = 1_000;
const NESTING_MAX: usize = 100;
/// Selects and joins make the planner work more than anything else.
const SELECTS_MAX: usize = 200;
const JOINS_MAX: usize = 32;

/// Parses a text that must be exactly one query (`SELECT`, `WITH`, `VALUES`, or `EXPLAIN` of one).
///
/// # Errors
/// Anything else, and texts that are too large or too complex.
pub(crate) fn parse_query(text: &str) -> Result<Statement> {
    let tokens = check_text(text)?;
    let numbered = number_parameters(&tokens);
    let mut parser = DFParserBuilder::new(numbered.as_deref().unwrap_or(text))
        .with_dialect(&PostgreSqlDialect {})
        .with_recursion_limit(NESTING_MAX)
        .build()
        .map_err(|error| syntax(error.strip_backtrace()))?;
    let mut statements = parser.parse_statements().map_err(|error| syntax(error.strip_backtrace()))?;
    let Some(statement) = statements.pop_front() else {
        return Err(ApiError::invalid("the query is empty"));
    };
    if !statements.is_empty() {
        return Err(ApiError::invalid("one query at a time; found several statements"));
    }
    if is_query(&statement) {
        return Ok(statement);
    }
    let words: Vec<_> = text.split_whitespace().take(2).collect();
    Err(ApiError::new(
        Kind::Invalid,
        format!("only queries are allowed (SELECT, WITH, VALUES, EXPLAIN); found `{}`", words.join(" ")),
    ))
}

/// The text with `?` as `$1`, `$2`, ..., where there are any.
fn number_parameters(tokens: &[Token]) -> Option<String> {
    if !tokens.contains(&Token::Question) {
        return None;
    }
    let mut n = 0;
    let number = |token: &Token| match token {
        Token::Question => {
            n += 1;
            format!("${n}")
        }
        other => other.to_string(),
    };
    Some(tokens.iter().map(number).collect())
}

/// The highest number of the parameters `$1`, `$2`, ... in a text.
pub(crate) fn parameters(text: &str) -> usize {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, text).tokenize().unwrap_or_default();
    let number = |token: Token| match token {
        Token::Placeholder(name) => name.trim_start_matches('$').parse().ok(),
        _ => None,
    };
    tokens.into_iter().filter_map(number).max().unwrap_or(0)
}

/// Refuses texts that are too large or too complex to be parsed.
pub(super) fn check_text(text: &str) -> Result<Vec<Token>> {
    if text.len() > TEXT_BYTES_MAX {
        let message = format!("the query is too complex: {} bytes, at most {TEXT_BYTES_MAX}", text.len());
        return Err(ApiError::invalid(message));
    }
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, text).tokenize();
    let tokens = tokens.map_err(|error| syntax(error.to_string()))?;
    check_size(&tokens)?;
    Ok(tokens)
}

fn syntax(message: String) -> ApiError {
    ApiError::invalid(format!("SQL syntax: {message}"))
}

/// Whether a statement only reads.
pub(crate) fn only_reads(statement: &SqlStatement) -> bool {
    match statement {
        SqlStatement::Query(_) => true,
        SqlStatement::Explain { analyze: false, statement, .. } => only_reads(statement),
        _ => false,
    }
}

fn is_query(statement: &Statement) -> bool {
    match statement {
        Statement::Statement(inner) => only_reads(inner),
        Statement::Explain(explain) => !explain.options.analyze && is_query(&explain.statement),
        Statement::CreateExternalTable(_) | Statement::CopyTo(_) | Statement::Reset(_) => false,
    }
}

fn check_size(tokens: &[Token]) -> Result<()> {
    let (mut operators, mut meaningful, mut selects, mut joins) = (0, 0, 0, 0);
    for token in tokens {
        match token {
            Token::Whitespace(_) => continue,
            Token::Word(word) => {
                let text = word.value.as_str();
                selects += usize::from(text.eq_ignore_ascii_case("select"));
                joins += usize::from(text.eq_ignore_ascii_case("join"));
                let is_operator = word.quote_style.is_none()
                    && [
                        "and",
                        "or",
                        "not",
                        "union",
                        "intersect",
                        "except",
                        "like",
                        "is",
                        "between",
                        "case",
                        "when",
                    ]
                    .iter()
                    .any(|keyword| text.eq_ignore_ascii_case(keyword));
                operators += usize::from(is_operator);
            }
            Token::Comma
            | Token::Period
            | Token::LParen
            | Token::RParen
            | Token::LBracket
            | Token::RBracket
            | Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::Placeholder(_)
            | Token::SemiColon
            | Token::EOF => {}
            _ => operators += 1,
        }
        meaningful += 1;
    }
    let counts = [
        (operators, OPERATORS_MAX, "operators"),
        (meaningful, TOKENS_MAX, "tokens"),
        (selects, SELECTS_MAX, "SELECTs"),
        (joins, JOINS_MAX, "joins"),
    ];
    if let Some((n, most, what)) = counts.into_iter().find(|(n, most, _)| n > most) {
        return Err(ApiError::invalid(format!("the query is too complex: {n} {what}, at most {most}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_pass() {
        for text in [
            "SELECT 1",
            "select count(*) from measurements;",
            "WITH a AS (SELECT 1) SELECT * FROM a",
            "VALUES (1), (2)",
            "EXPLAIN SELECT * FROM sites",
            "(SELECT 1) UNION ALL (SELECT 2)",
        ] {
            assert!(parse_query(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn question_marks_are_parameters_but_not_in_texts() {
        let parsed = parse_query("SELECT '?' AS \"a?\", ? -- ?\n, ?::text").expect("query");
        assert_eq!(parsed.to_string(), "SELECT '?' AS \"a?\", $1, $2::TEXT");
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "CREATE TABLE x (a int)",
            "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
            "CREATE VIEW v AS SELECT 1",
            "COPY (SELECT 1) TO '/tmp/x.csv'",
            "INSERT INTO measurements VALUES (1)",
            "UPDATE sites SET name = 'x'",
            "DELETE FROM sites",
            "DROP TABLE sites",
            "SET datafusion.runtime.memory_limit = '1G'",
            "RESET datafusion.runtime.memory_limit",
            "PREPARE p AS SELECT 1",
            "EXECUTE p",
            "EXPLAIN ANALYZE SELECT 1",
            "EXPLAIN INSERT INTO sites VALUES (1)",
            "SELECT 1; SELECT 2",
            "BEGIN",
            "",
            ";",
            "SELEC 1",
        ] {
            let error = parse_query(text).expect_err(text);
            assert_eq!(error.kind, Kind::Invalid, "{text}");
        }
    }

    #[test]
    fn long_chains_and_deep_nesting_are_refused() {
        let chain = |n: usize| format!("SELECT {}", vec!["1"; n].join("+"));
        assert!(parse_query(&chain(900)).is_ok());
        for text in [
            chain(2_000),
            chain(20_000),
            chain(100_000),
            format!("SELECT * FROM sites WHERE {}", vec!["active"; 20_000].join(" OR ")),
            format!("SELECT {}1{}", "(".repeat(10_000), ")".repeat(10_000)),
            format!("SELECT {}1", "-".repeat(5_000)),
            format!("SELECT 1 IN ({})", vec!["1"; 100_000].join(",")),
            format!("SELECT '{}'", "x".repeat(300_000)),
            format!(
                "WITH {} SELECT 1",
                (0..300).map(|i| format!("c{i} AS (SELECT 1)")).collect::<Vec<_>>().join(", ")
            ),
            format!("SELECT 1 FROM sites s {}", "JOIN sites USING (id) ".repeat(40)),
        ] {
            let error = parse_query(&text).expect_err("too complex");
            assert_eq!(error.kind, Kind::Invalid);
        }
    }
}
