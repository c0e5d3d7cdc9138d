//! Programs of jq, for answers that JSONPath cannot map.
//!
//! A program may run for ever or take all memory, and nothing within a process can stop it. So each run is a process of its own: this
//! binary once more, with bounds of time and memory and without an environment.

use std::{
    io::{self, Read, Write},
    time::Duration,
};

use jaq_core::{Compiler, Ctx, Vars, data::JustLut, load, unwrap_valr};
use jaq_json::{Val, read, write};
use serde_json::Value;

use super::failure::{CallFailure, Class};

/// Characters of a program.
pub(crate) const PROGRAM_CHARS_MAX: usize = 8192;
/// Seconds of a run, of the clock and of the processor.
const SECONDS_MAX: u64 = 10;
/// Address space of a run.
const MEMORY_MAX: u64 = 2 << 30;
/// Bytes that a run may answer.
const OUTPUT_MAX: u64 = 16 << 20;
/// The exit code for a program that is none.
const NO_PROGRAM: u8 = 3;

/// The name of the hidden command that runs a program.
pub const COMMAND: &str = "jq";

/// Where a text of a program stopped making sense.
fn unexpected(at: &str) -> String {
    let near: String = at.chars().take(20).collect();
    if near.is_empty() { "it ends too early".to_owned() } else { format!("unexpected at `{near}`") }
}

/// Runs a program on a document in JSON, and writes what it yields, a value a line.
///
/// # Errors
/// A sentence, and whether the program itself is wrong.
fn evaluate(program: &str, document: &[u8], out: &mut dyn Write) -> Result<(), (bool, String)> {
    let defs = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs());
    let functions = jaq_core::funs().chain(jaq_std::funs()).chain(jaq_json::funs());
    let arena = load::Arena::default();
    let wrong = |words: Vec<String>| (true, format!("jq: {}", words.join("; ")));
    let modules = load::Loader::new(defs).load(&arena, load::File { code: program, path: () });
    let modules = modules.map_err(|errors| {
        let words = errors.into_iter().flat_map(|(_, error)| match error {
            load::Error::Io(errors) => errors.into_iter().map(|(_, words)| words).collect::<Vec<_>>(),
            load::Error::Lex(errors) => errors.into_iter().map(|(_, at)| unexpected(at)).collect(),
            load::Error::Parse(errors) => errors.into_iter().map(|(_, at)| unexpected(at)).collect(),
        });
        wrong(words.collect())
    })?;
    let filter = Compiler::default().with_funs(functions).compile(modules).map_err(|errors| {
        let names = errors.into_iter().flat_map(|(_, errors)| errors);
        wrong(names.map(|(name, _)| format!("`{name}` is not defined")).collect())
    })?;
    let document = read::parse_single(document).map_err(|error| (false, format!("no JSON: {error}")))?;
    let context = Ctx::<JustLut<Val>>::new(&filter.lut, Vars::new([]));
    for value in filter.id.run((context, document)).map(unwrap_valr) {
        let value = value.map_err(|error| (false, format!("jq: {error}")))?;
        let written = write::write(out, &write::Pp::default(), 0, &value).and_then(|()| out.write_all(b"\n"));
        written.map_err(|error| (false, error.to_string()))?;
    }
    Ok(())
}

/// Reads a program as a text of JSON and then a document, and writes what comes of it.
fn answer(input: &[u8], out: &mut dyn Write) -> Result<(), (bool, String)> {
    let mut values = serde_json::Deserializer::from_slice(input).into_iter::<String>();
    match values.next() {
        Some(Ok(program)) => evaluate(&program, &input[values.byte_offset()..], out),
        _ => Err((true, "no program".to_owned())),
    }
}

fn code(is_program: bool) -> u8 {
    if is_program { NO_PROGRAM } else { 1 }
}

/// What the hidden command does; answers the exit code.
pub fn run_command() -> u8 {
    let input = bound().and_then(|()| {
        let mut input = Vec::new();
        io::stdin().lock().read_to_end(&mut input)?;
        Ok(input)
    });
    let outcome = input.map_err(|error| (false, error.to_string())).and_then(|input| {
        let mut out = io::BufWriter::new(io::stdout().lock());
        answer(&input, &mut out)?;
        out.flush().map_err(|error| (false, error.to_string()))
    });
    match outcome {
        Ok(()) => 0,
        Err((is_program, words)) => {
            eprint!("{words}");
            code(is_program)
        }
    }
}

#[cfg(unix)]
fn bound() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = |most| Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(Resource::Cpu, limit(SECONDS_MAX))?;
    setrlimit(Resource::As, limit(MEMORY_MAX))?;
    Ok(setrlimit(Resource::Core, limit(0))?)
}

#[cfg(not(unix))]
fn bound() -> io::Result<()> {
    Ok(())
}

/// What a program yields for a document, in order.
///
/// # Errors
/// [`Class::Refused`] when it is no program; [`Class::BadPayload`] when it fails on this document or needs too much.
pub(crate) async fn run(program: &str, document: &Value) -> Result<Vec<Value>, CallFailure> {
    let mut input = serde_json::to_vec(program).unwrap_or_default();
    input.push(b'\n');
    serde_json::to_writer(&mut input, document).unwrap_or_default();
    let failed = |words: String| CallFailure::new(Class::BadPayload, words);
    let run = tokio::time::timeout(Duration::from_secs(SECONDS_MAX), in_process(input));
    let run = run.await.map_err(|_| failed(format!("the jq program ran for more than {SECONDS_MAX} s")))?;
    let (code, out, words) = run.map_err(|error| failed(format!("jq could not be run: {error}")))?;
    match code {
        Some(0) if out.len() as u64 > OUTPUT_MAX => {
            Err(failed(format!("the jq program yields more than {OUTPUT_MAX} bytes")))
        }
        Some(0) => serde_json::Deserializer::from_slice(&out)
            .into_iter()
            .collect::<Result<Vec<Value>, _>>()
            .map_err(|error| failed(format!("the jq program yields no JSON: {error}"))),
        Some(code) if code == i32::from(NO_PROGRAM) => Err(CallFailure::new(Class::Refused, words)),
        Some(1) => Err(failed(words)),
        _ => Err(failed(format!(
            "the jq program was stopped: it may take {SECONDS_MAX} s and {} MiB",
            MEMORY_MAX >> 20
        ))),
    }
}

type Ran = (Option<i32>, Vec<u8>, String);

/// The binary of unit tests has no such command.
#[cfg(test)]
async fn in_process(input: Vec<u8>) -> io::Result<Ran> {
    let mut out = Vec::new();
    Ok(match answer(&input, &mut out) {
        Ok(()) => (Some(0), out, String::new()),
        Err((is_program, words)) => (Some(i32::from(code(is_program))), Vec::new(), words),
    })
}

#[cfg(not(test))]
async fn in_process(input: Vec<u8>) -> io::Result<Ran> {
    use std::process::Stdio;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    // The file that was started, whatever is in its place by now.
    let this = std::path::Path::new("/proc/self/exe");
    let this = if this.exists() { this.to_owned() } else { std::env::current_exe()? };
    let mut command = tokio::process::Command::new(this);
    command.arg(COMMAND).env_clear().kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async move {
        if let Some(mut stdin) = stdin {
            // A program that is none does not read its document.
            let _ = stdin.write_all(&input).await;
        }
    };
    let mut out = Vec::new();
    let mut words = Vec::new();
    let read = async {
        match stdout {
            Some(stdout) => stdout.take(OUTPUT_MAX + 1).read_to_end(&mut out).await,
            None => Ok(0),
        }
    };
    let complain = async {
        match stderr {
            Some(stderr) => stderr.take(400).read_to_end(&mut words).await,
            None => Ok(0),
        }
    };
    let ((), read, complained) = tokio::join!(write, read, complain);
    read?;
    complained?;
    if out.len() as u64 > OUTPUT_MAX {
        return Ok((Some(0), out, String::new()));
    }
    let status = child.wait().await?;
    Ok((status.code(), out, String::from_utf8_lossy(&words).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(program: &str, document: &str) -> Result<String, (bool, String)> {
        let mut out = Vec::new();
        evaluate(program, document.as_bytes(), &mut out)?;
        Ok(String::from_utf8(out).expect("text"))
    }

    #[test]
    fn a_program_yields_values_or_says_what_is_wrong() {
        assert_eq!(
            outcome(".a[] | {v: (. * 2)}", r#"{"a":[1,2.5]}"#).as_deref(),
            Ok("{\"v\":2}\n{\"v\":5.0}\n")
        );
        let (is_program, words) = outcome(".a[", "{}").expect_err("no program");
        assert!(is_program && words.starts_with("jq: "), "{words}");
        let (is_program, words) = outcome("frobnicate(.)", "{}").expect_err("no program");
        assert!(is_program && words.contains("frobnicate"), "{words}");
        let (is_program, words) = outcome(".a + 1", r#"{"a":[]}"#).expect_err("no sum");
        assert!(!is_program && words.contains("jq: "), "{words}");
    }
}
