//! Green Button: the XML of NAESB ESPI (REQ.21), an Atom feed of resources that name each other by `href`.
//!
//! A reading type says what a meter reading measures. Where it comes before its interval blocks, as in most feeds, these become readings
//! one after the other; blocks whose type is not known yet are kept until the end of the feed, some bytes for each reading. Elements are known by their local names, whatever their prefix. Times are
//! instants already: the parameters of local time are for showing them.
//!
//! What real feeds get wrong: a `powerOfTenMultiplier` within a reading is not applied, only that of the type; what was fed in is stored
//! as a positive number even where the utility writes it below zero.

use std::{
    collections::{HashMap, VecDeque},
    io::BufRead,
    ops::Range,
};

use quick_xml::{Reader as XmlReader, events::Event};
use wattlake_catalog::{Category, Quality};

use super::{FileOptions, FileRows, RowReader};
use crate::{Error, Result};

/// Readings that are held: those of an entry, and those whose type is not known yet.
pub(super) const READINGS_MAX: usize = if cfg!(test) { 1_000 } else { 20_000_000 };
/// Elements within each other.
const DEPTH_MAX: usize = 64;
const DAY: i64 = 86_400;
/// Readings that are taken out at once.
const BLOCK: usize = 16 << 10;

/// A reading as the feed has it.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// Seconds since 1970 UTC.
    start: i64,
    duration: i64,
    value: f64,
    /// The worst code; negative: none.
    quality: i16,
    line: u32,
}

/// What is read of an interval block.
#[derive(Debug, Default)]
struct Block {
    /// Where the feed says that it belongs to.
    links: Vec<String>,
    start: Option<i64>,
    readings: Vec<Reading>,
}

/// What readings of a meter reading are.
#[derive(Clone, Copy, Debug, Default)]
struct ReadingType {
    accumulation: i64,
    commodity: i64,
    flow: i64,
    length: Option<i64>,
    power_of_ten: i32,
    uom: Option<i64>,
    default_quality: Option<i16>,
}

/// The resources of a feed by the path of their own link.
#[derive(Default)]
struct Feed {
    types: HashMap<String, ReadingType>,
    /// Links of each meter reading, and the type within it.
    meter_readings: HashMap<String, (Vec<String>, Option<ReadingType>)>,
    /// Links of reading types, which may name their meter reading.
    type_links: HashMap<String, Vec<String>>,
}

pub(super) struct Reader<R: BufRead> {
    /// Where the feed goes on; `None`: it was read to its end.
    parser: Option<Parser<R>>,
    entity: Option<String>,
    feed: Feed,
    /// Blocks whose type is not known yet, and how many readings they have.
    held: Vec<Block>,
    held_readings: usize,
    /// Blocks to be taken out, and the reading of the first one that is next.
    ready: VecDeque<Block>,
    next: usize,
    has_blocks: bool,
}

/// Counts the lines of what is read.
struct Counted<R> {
    source: R,
    line: u32,
}

impl<R: BufRead> std::io::Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.line += buffer[..read].iter().filter(|byte| **byte == b'\n').count() as u32;
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        self.source.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        if let Ok(buffer) = self.source.fill_buf() {
            self.line +=
                buffer[..count.min(buffer.len())].iter().filter(|byte| **byte == b'\n').count() as u32;
        }
        self.source.consume(count);
    }
}

/// The path of a link, without scheme, host and the slash at its end.
fn path_of(href: &str) -> String {
    let path =
        href.split_once("://").map_or(href, |(_, rest)| rest.split_once('/').map_or("", |(_, path)| path));
    path.trim_matches('/').to_owned()
}

/// Of a link to a block or to its list: the meter reading above it.
fn meter_reading_of(path: &str) -> &str {
    path.find("/IntervalBlock").map_or(path, |end| &path[..end])
}

/// How a meter is called: what stands before and after `UsagePoint` in its path.
fn usage_point(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').collect();
    let at = parts.iter().position(|part| *part == "UsagePoint")?;
    let id = parts.get(at + 1)?;
    Some(match at.checked_sub(1).and_then(|before| parts.get(before)) {
        Some(before) => format!("{before}/{id}"),
        None => (*id).to_owned(),
    })
}

/// Of several quality codes the worst counts: questionable ones before estimated ones before valid ones.
fn worse(a: i16, b: i16) -> i16 {
    let rank = |code: i16| match code {
        10 | 16 => 2,
        7 | 8 | 9 | 11 | 12 | 13 | 15 => 1,
        _ => 0,
    };
    if rank(b) > rank(a) || a < 0 { b } else { a }
}

fn quality_of(code: i16) -> Quality {
    match worse(0, code) {
        0 => Quality::Good,
        _ => Quality::Estimated,
    }
}

impl<R: BufRead> Reader<R> {
    pub(super) fn new(source: R, options: &FileOptions) -> Self {
        Self {
            parser: Some(Parser::new(source)),
            entity: options.entity.clone(),
            feed: Feed::default(),
            held: Vec::new(),
            held_readings: 0,
            ready: VecDeque::new(),
            next: 0,
            has_blocks: false,
        }
    }

    /// Takes an entry of the feed.
    fn take(&mut self, entry: Entry) {
        for block in entry.end(&mut self.feed) {
            self.has_blocks = true;
            let meter_reading = self.feed.meter_reading(&block);
            if self.feed.kind_by_links(meter_reading).is_some() {
                self.ready.push_back(block);
            } else {
                self.held_readings += block.readings.len();
                self.held.push(block);
            }
        }
    }
}

/// Reads the XML of a feed, entry by entry.
struct Parser<R: BufRead> {
    xml: XmlReader<Counted<R>>,
    buffer: Vec<u8>,
    /// Local names of the elements that are open.
    path: Vec<String>,
    text: String,
    entry: Entry,
    /// Readings of that entry.
    count: usize,
}

impl<R: BufRead> Parser<R> {
    fn new(source: R) -> Self {
        let mut xml = XmlReader::from_reader(Counted { source, line: 1 });
        xml.config_mut().trim_text(true);
        Self {
            xml,
            buffer: Vec::new(),
            path: Vec::new(),
            text: String::new(),
            entry: Entry::default(),
            count: 0,
        }
    }

    /// The next entry; `None` at the end of the feed. `held`: readings that are kept elsewhere.
    fn next(&mut self, held: usize, rows: &mut FileRows) -> Result<Option<Entry>> {
        loop {
            self.buffer.clear();
            let event = self.xml.read_event_into(&mut self.buffer);
            let line = self.xml.get_ref().line;
            let wrong = |words: String| Error::invalid(format!("line {line}: {words}"));
            let (path, entry) = (&mut self.path, &mut self.entry);
            match event.map_err(|error| wrong(format!("no sound XML: {error}")))? {
                Event::Start(element) => {
                    let name = String::from_utf8_lossy(element.local_name().as_ref()).into_owned();
                    if path.len() >= DEPTH_MAX {
                        return Err(wrong(format!("elements are nested more than {DEPTH_MAX} deep")));
                    }
                    if name == "link" {
                        entry.link(&element);
                    }
                    entry.begin(&name);
                    path.push(name);
                    self.text.clear();
                }
                Event::Empty(element) => {
                    let name = String::from_utf8_lossy(element.local_name().as_ref()).into_owned();
                    if name == "link" {
                        entry.link(&element);
                    }
                    entry.begin(&name);
                }
                Event::Text(part) => {
                    self.text.push_str(&part.decode().map_err(|error| wrong(error.to_string()))?);
                }
                Event::End(_) => {
                    let Some(name) = path.pop() else { continue };
                    let within = path.last().map_or("", String::as_str);
                    let text = std::mem::take(&mut self.text);
                    let taken = match name.as_str() {
                        "entry" => {
                            self.count = 0;
                            return Ok(Some(std::mem::take(entry)));
                        }
                        "IntervalReading" => {
                            self.count += 1;
                            if self.count + held > READINGS_MAX {
                                return Err(wrong(format!(
                                    "more than {READINGS_MAX} readings before what they measure is told; import the feed in parts"
                                )));
                            }
                            entry.end_reading(line)
                        }
                        _ => entry.take(within, &name, text.trim()),
                    };
                    if let Err(words) = taken {
                        rows.refuse(u64::from(line), words);
                    }
                }
                // Entities of our own are none: nothing expands.
                Event::DocType(_) => {
                    return Err(wrong("a document type is not expected in a feed".to_owned()));
                }
                Event::Eof if path.is_empty() => return Ok(None),
                Event::Eof => {
                    let words = format!("the feed ends within <{}>: it is cut off", path.join("><"));
                    return Err(Error::invalid(words));
                }
                _ => {}
            }
        }
    }
}

/// What was read of the entry that is open.
#[derive(Default)]
struct Entry {
    own: String,
    links: Vec<String>,
    is_meter_reading: bool,
    reading_type: Option<ReadingType>,
    blocks: Vec<Block>,
    reading: Partial,
}

/// A reading whose elements are being read.
#[derive(Default)]
struct Partial {
    start: Option<i64>,
    duration: Option<i64>,
    value: Option<f64>,
    quality: Option<i16>,
}

impl Entry {
    fn link(&mut self, element: &quick_xml::events::BytesStart<'_>) {
        let attribute = |name: &str| {
            let found = element.try_get_attribute(name).ok().flatten()?;
            Some(String::from_utf8_lossy(&found.value).into_owned())
        };
        let Some(href) = attribute("href") else { return };
        match attribute("rel").as_deref() {
            Some("self") => self.own = path_of(&href),
            Some("up" | "related") => self.links.push(path_of(&href)),
            _ => {}
        }
    }

    fn begin(&mut self, name: &str) {
        match name {
            "MeterReading" => self.is_meter_reading = true,
            "ReadingType" => self.reading_type = Some(ReadingType::default()),
            "IntervalBlock" => self.blocks.push(Block::default()),
            "IntervalReading" => self.reading = Partial::default(),
            _ => {}
        }
    }

    /// Takes the text of an element that has ended.
    fn take(&mut self, within: &str, name: &str, text: &str) -> std::result::Result<(), String> {
        let whole = || {
            text.parse::<i64>().map_err(|_| {
                format!(
                    "<{name}> is `{}`, which is no whole number",
                    &text.chars().take(20).collect::<String>()
                )
            })
        };
        match (within, name) {
            ("timePeriod", "start") => self.reading.start = Some(whole()?),
            ("timePeriod", "duration") => self.reading.duration = Some(whole()?),
            ("IntervalReading", "value") => self.reading.value = Some(whole()? as f64),
            ("ReadingQuality", "quality") => {
                let code = i16::try_from(whole()?).unwrap_or(16);
                self.reading.quality = Some(self.reading.quality.map_or(code, |known| worse(known, code)));
            }
            ("interval", "start") => {
                let start = whole()?;
                self.blocks.iter_mut().last().into_iter().for_each(|block| block.start = Some(start));
            }
            ("ReadingType", _) => {
                let Some(kind) = &mut self.reading_type else { return Ok(()) };
                match name {
                    "accumulationBehaviour" => kind.accumulation = whole()?,
                    "commodity" => kind.commodity = whole()?,
                    "flowDirection" => kind.flow = whole()?,
                    "intervalLength" => kind.length = Some(whole()?).filter(|length| *length > 0),
                    "powerOfTenMultiplier" => {
                        let power = whole()?;
                        let power = i32::try_from(power).ok().filter(|power| (-12..=12).contains(power));
                        kind.power_of_ten =
                            power.ok_or_else(|| format!("a multiplier of 10^{text} is not expected"))?;
                    }
                    "uom" => kind.uom = Some(whole()?),
                    "defaultQuality" => kind.default_quality = i16::try_from(whole()?).ok(),
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn end_reading(&mut self, line: u32) -> std::result::Result<(), String> {
        let Partial { start, duration, value, quality } = std::mem::take(&mut self.reading);
        let value = value.ok_or("a reading without a value")?;
        let block = self.blocks.last_mut().ok_or("a reading outside of a block")?;
        // Without a time of its own it follows the one before it.
        let start = start.or_else(|| match block.readings.last() {
            Some(last) if last.duration > 0 => last.start.checked_add(last.duration),
            Some(_) => None,
            None => block.start,
        });
        let start =
            start.filter(|start| (0..=32_503_680_000).contains(start)).ok_or("a reading without a time")?;
        let duration = duration.filter(|duration| (0..=400 * DAY).contains(duration));
        let duration = duration.or_else(|| block.readings.last().map(|last| last.duration)).unwrap_or(0);
        block.readings.push(Reading { start, duration, value, quality: quality.unwrap_or(-1), line });
        Ok(())
    }

    /// Puts what it tells into the feed; answers its blocks.
    fn end(self, feed: &mut Feed) -> Vec<Block> {
        if self.is_meter_reading {
            feed.meter_readings.insert(self.own, (self.links, self.reading_type));
        } else if let Some(kind) = self.reading_type {
            feed.types.insert(self.own.clone(), kind);
            feed.type_links.insert(self.own, self.links);
        } else if !self.blocks.is_empty() {
            let links: Vec<String> = std::iter::once(self.own).chain(self.links).collect();
            return self.blocks.into_iter().map(|block| Block { links: links.clone(), ..block }).collect();
        }
        Vec::new()
    }
}

impl Feed {
    /// The meter reading that a block belongs to.
    fn meter_reading(&self, block: &Block) -> Option<&str> {
        let named =
            |link: &String| Some(self.meter_readings.get_key_value(meter_reading_of(link))?.0.as_str());
        // Or it names the block.
        let names = |links: &[String]| links.iter().any(|link| block.links.contains(link));
        let naming =
            || self.meter_readings.iter().find(|(_, (links, _))| names(links)).map(|(path, _)| path.as_str());
        block.links.iter().find_map(named).or_else(naming)
    }

    /// The type of a meter reading, as far as links tell.
    fn kind_by_links(&self, meter_reading: Option<&str>) -> Option<ReadingType> {
        let path = meter_reading?;
        let (links, embedded) = self.meter_readings.get(path)?;
        let linked = links.iter().find_map(|link| self.types.get(link));
        let naming = || {
            let named = self.type_links.iter().find(|(_, links)| links.iter().any(|link| link == path));
            named.and_then(|(own, _)| self.types.get(own))
        };
        linked.copied().or(*embedded).or_else(|| naming().copied())
    }

    /// The type of a meter reading once the whole feed is known.
    fn kind(&self, meter_reading: Option<&str>) -> Option<ReadingType> {
        // A feed with one type has nothing to tell apart.
        let only = || match self.types.len() {
            1 => self.types.values().next().copied(),
            _ => None,
        };
        self.kind_by_links(meter_reading).or_else(only)
    }
}

/// Metric, unit and factor of a reading type.
fn measured(
    kind: &ReadingType,
    length: i64,
) -> std::result::Result<(&'static str, &'static str, f64), String> {
    let is_register = matches!(kind.accumulation, 1 | 3);
    let is_daily = length >= DAY;
    let uom = kind.uom.ok_or("the reading type has no unit (uom)")?;
    let energy = match (kind.flow, is_register, is_daily) {
        (19, true, _) => "export_energy_total",
        (19, _, true) => "day_export_energy",
        (19, ..) => "export_energy",
        (4, true, _) => "net_energy_total",
        (4, _, true) => "day_net_energy",
        (4, ..) => "net_energy",
        (_, true, _) => "import_energy_total",
        (_, _, true) => "day_import_energy",
        _ => "import_energy",
    };
    let power = match (kind.flow, is_daily) {
        (_, true) => "peak_power",
        (19, _) => "export_power",
        (4, _) => "grid_power",
        _ => "import_power",
    };
    let volume = if kind.commodity == 9 { "water_volume" } else { "gas_volume" };
    let volume = match (is_register, volume) {
        (true, "water_volume") => "water_total",
        (true, _) => "gas_total",
        (false, volume) => volume,
    };
    Ok(match uom {
        72 => (energy, "Wh", 1.0),
        31 => (energy, "J", 1.0),
        38 => (power, "W", 1.0),
        71 => ("apparent_energy", "kVAh", 1e-3),
        61 => ("apparent_power", "VA", 1.0),
        73 => ("reactive_energy", "kvarh", 1e-3),
        63 => ("reactive_power", "var", 1.0),
        29 => ("voltage", "V", 1.0),
        5 => ("current", "A", 1.0),
        33 => ("frequency", "Hz", 1.0),
        65 => ("power_factor", "", 1.0),
        42 => (volume, "m3", 1.0),
        // NIST SP 811: cubic foot, US gallon, therm (US), BTU (IT).
        119 => (volume, "m3", 0.028_316_846_592),
        128 => (volume, "m3", 0.003_785_411_784),
        134 => (volume, "l", 1.0),
        169 => ("gas_energy", "MJ", 105.480_4),
        132 => ("gas_energy", "J", 1_055.055_852_62),
        other => return Err(format!("the unit {other} (uom) is not known")),
    })
}

impl<R: BufRead + Send> RowReader for Reader<R> {
    fn read(&mut self, rows: &mut FileRows) -> Result<bool> {
        if let Some(block) = self.ready.front() {
            let to = block.readings.len().min(self.next + BLOCK);
            let is_taken = self.feed.take_out(block, self.next..to, self.entity.as_deref(), rows);
            self.next = to;
            if !is_taken || to == block.readings.len() {
                self.ready.pop_front();
                self.next = 0;
            }
            return Ok(true);
        }
        let Some(parser) = &mut self.parser else { return Ok(false) };
        match parser.next(self.held_readings, rows)? {
            Some(entry) => self.take(entry),
            None => {
                self.parser = None;
                self.ready.extend(self.held.drain(..));
                if !self.has_blocks {
                    rows.refuse(1, "the feed has no interval blocks: there are no readings in it");
                }
            }
        }
        Ok(true)
    }
}

impl Feed {
    /// Takes some readings of a block out; false: they cannot be taken, and none of the block.
    fn take_out(
        &self,
        block: &Block,
        which: Range<usize>,
        entity: Option<&str>,
        rows: &mut FileRows,
    ) -> bool {
        let line = block.readings.first().map_or(0, |reading| u64::from(reading.line));
        let count = block.readings.len();
        let Some(kind) = self.kind(self.meter_reading(block)) else {
            let words = format!("{count} readings without a reading type: what they measure is not told");
            rows.refuse(line, words);
            return false;
        };
        let named = || block.links.iter().find_map(|link| usage_point(link));
        let entity = entity.map(str::to_owned).or_else(named).unwrap_or_else(|| "usage-point".to_owned());
        let first = block.readings.first().map_or(0, |reading| reading.duration);
        let length = kind.length.filter(|_| first == 0).unwrap_or(first);
        let (metric, unit, factor) = match measured(&kind, length) {
            Ok(measured) => measured,
            Err(words) => {
                rows.refuse(line, format!("{count} readings: {words}"));
                return false;
            }
        };
        rows.hint(&entity, Category::Cons, Some(length).filter(|length| *length < DAY));
        let series = rows.series(&entity, metric, unit);
        let scale = 10f64.powi(kind.power_of_ten.abs());
        for reading in &block.readings[which] {
            let value = if kind.power_of_ten < 0 { reading.value / scale } else { reading.value * scale };
            let value = if kind.flow == 19 { value.abs() } else { value } * factor;
            let code = if reading.quality < 0 { kind.default_quality.unwrap_or(0) } else { reading.quality };
            let (ts, line) = (reading.start * 1_000_000, u64::from(reading.line));
            rows.push(series, ts, value, quality_of(code), line);
        }
        true
    }
}
