//! A file that is being read in parts, with its progress bar.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use wattlake_engine::{BodyFormat, FileFormat, Part, Parts};

use super::{plan::Plan, report::Report};
use crate::cli::Failure;

pub(super) struct Reading<'a> {
    plan: &'a Plan,
    bytes: u64,
    bar: ProgressBar,
    parts: Option<Parts>,
}

impl<'a> Reading<'a> {
    pub(super) fn open(plan: &'a Plan, part_bytes: usize) -> Result<Self, Failure> {
        let unreadable =
            |error: std::io::Error| Failure::io(format!("cannot read {}: {error}", plan.file.name));
        let opened = std::fs::File::open(&plan.file.path).map_err(unreadable)?;
        let bytes = opened.metadata().map_err(unreadable)?.len();
        let bar = progress(bytes, &plan.file.stem);
        let mapping = plan.mapping.as_deref();
        let parts = match plan.format {
            FileFormat::Body(BodyFormat::Parquet) => Parts::of_parquet(opened, mapping),
            // The bar moves with what is read, compressed or not.
            format => Parts::of_file(bar.wrap_read(opened), format, &plan.options, mapping, part_bytes),
        };
        let parts = parts.map_err(|error| plan.named(error))?;
        Ok(Self { plan, bytes, bar, parts: Some(parts) })
    }

    /// The next part. Reading, and the decompression and decoding that go with it, block.
    pub(super) async fn next(&mut self) -> Result<Option<Part>, Failure> {
        let Some(mut parts) = self.parts.take() else { return Ok(None) };
        let (back, part) = tokio::task::spawn_blocking(move || {
            let part = parts.next();
            (parts, part)
        })
        .await
        .map_err(|_| {
            Failure::failed(format!("{}: the file is damaged: its decoder failed", self.plan.file.name))
        })?;
        let rows = back.rows();
        self.parts = Some(back);
        let Some(part) = part else { return Ok(None) };
        let part = part.map_err(|error| self.plan.named(error))?;
        if let Some(rows) = rows {
            self.bar.set_position(self.bytes * part.first_row / rows.max(1));
        }
        Ok(Some(part))
    }

    pub(super) fn show(&self, report: &Report) {
        let (accepted, rejected) = report.counts();
        self.bar.set_message(format!("{accepted} readings"));
        if self.bar.is_hidden() {
            tracing::info!(file = %self.plan.file.name, accepted, rejected, "importing");
        }
    }

    pub(super) fn finish(&self) {
        self.bar.finish();
    }
}

/// A bar that counts rows, of which there are about so many.
pub(super) fn rows(estimate: Option<u64>, name: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = estimate.map_or_else(ProgressBar::no_length, ProgressBar::new);
    let template = "{prefix} [{bar:30}] {human_pos} readings {per_sec} ETA {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(name.to_owned());
    bar
}

fn progress(bytes: u64, name: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(bytes);
    let template = "{prefix} [{bar:30}] {percent}% {msg} {bytes_per_sec} ETA {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(name.to_owned());
    bar
}
