//! Files in folders and archives.
//!
//! What is in a zip or tar is unpacked one by one into a temporary folder under names of our own, so that no name in an archive leads
//! anywhere, and within limits of count and size.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use tempfile::TempDir;

use crate::{Error, ErrorKind, Result, decode::decompressed};

/// Files of one import.
const FILES_MAX: usize = if cfg!(test) { 50 } else { 100_000 };
/// Folders within each other.
const DEPTH_MAX: usize = 32;
/// Bytes that archives of one import unpack to.
const UNPACKED_MAX: u64 = 256 << 30;
/// How much larger than the archive that may be, and what is fine in any case.
const RATIO_MAX: u64 = 200;
const UNPACKED_FLOOR: u64 = 64 << 20;
/// Bytes of the beginning of a file that tell its format.
const HEAD_BYTES: u64 = 64 << 10;

/// A file to import.
#[derive(Clone, Debug)]
pub struct FoundFile {
    /// As it is shown: for one of an archive with the archive's name before it.
    pub name: String,
    /// The file's own name without its endings.
    pub stem: String,
    pub path: PathBuf,
    /// Somebody named it; else it was found in a folder or an archive, where other things may lie as well.
    pub is_named: bool,
    /// Lives as long as the file is needed.
    unpacked: Option<Arc<TempDir>>,
}

impl FoundFile {
    fn new(path: PathBuf, is_named: bool) -> Self {
        let own = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { name: path.display().to_string(), stem: stem(&own), path, is_named, unpacked: None }
    }

    /// Something that is no file, but is imported as one.
    pub fn of_name(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::new(PathBuf::from(name), true) }
    }

    /// Whether it comes out of an archive.
    pub fn is_unpacked(&self) -> bool {
        self.unpacked.is_some()
    }

    /// The first bytes, decompressed.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn head(&self) -> Result<Vec<u8>> {
        let mut head = Vec::new();
        let file = File::open(&self.path).map_err(|error| unreadable(&self.name, &error))?;
        let read = decompressed(file).and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head));
        read.map_err(|error| unreadable(&self.name, &error))?;
        Ok(head)
    }
}

/// The name of a file without its endings.
fn stem(name: &str) -> String {
    name.split('.').next().filter(|stem| !stem.is_empty()).unwrap_or("file").to_owned()
}

fn unreadable(name: &str, error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Io, format!("cannot read {name}: {error}"))
}

fn too_many(what: &str) -> Error {
    Error::new(ErrorKind::TooLarge, format!("{what} has more than {FILES_MAX} files; import them in parts"))
}

/// Whether a file of a folder or archive is one of the system's own.
fn is_hidden(name: &str) -> bool {
    let is_own = |part: &str| part.starts_with('.') && part != "." && part != "..";
    name.split('/').any(|part| is_own(part) || part == "__MACOSX" || part == "Thumbs.db")
}

/// Files that are named by paths, by patterns such as `exports/*.csv`, and by the folders and archives that they are in; in order.
///
/// # Errors
/// [`ErrorKind::Io`] for what cannot be read, [`ErrorKind::TooLarge`] beyond the limits.
pub fn find_files(paths: &[PathBuf]) -> Result<Vec<FoundFile>> {
    let mut found = Vec::new();
    for path in paths {
        let text = path.to_string_lossy();
        if path.is_dir() {
            find_in_folder(path, 0, &mut found)?;
        } else if !path.exists() && text.contains(['*', '?', '[']) {
            let pattern = glob::glob(&text).map_err(|error| Error::invalid(format!("{text}: {error}")))?;
            let before = found.len();
            for path in pattern {
                let path = path.map_err(|error| unreadable(&text, &error))?;
                match path.is_dir() {
                    true => find_in_folder(&path, 0, &mut found)?,
                    false => found.push(FoundFile::new(path, true)),
                }
            }
            if found.len() == before {
                return Err(Error::new(ErrorKind::Io, format!("no file matches {text}")));
            }
        } else {
            found.push(FoundFile::new(path.clone(), true));
        }
    }
    let mut files = Vec::new();
    let mut unpacked = Unpacked { folder: None, bytes: 0 };
    for file in found {
        unpacked.open(file, &mut files)?;
        if files.len() > FILES_MAX {
            return Err(too_many("the import"));
        }
    }
    Ok(files)
}

fn find_in_folder(folder: &Path, depth: usize, found: &mut Vec<FoundFile>) -> Result<()> {
    let shown = folder.display().to_string();
    if depth > DEPTH_MAX {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("{shown}: folders are nested more than {DEPTH_MAX} deep"),
        ));
    }
    let entries = std::fs::read_dir(folder).map_err(|error| unreadable(&shown, &error))?;
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| unreadable(&shown, &error))?;
        if !is_hidden(&entry.file_name().to_string_lossy()) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    for path in paths {
        match path.is_dir() {
            true => find_in_folder(&path, depth + 1, found)?,
            false => found.push(FoundFile::new(path, false)),
        }
    }
    Ok(())
}

/// What archives were unpacked to.
struct Unpacked {
    folder: Option<Arc<TempDir>>,
    bytes: u64,
}

impl Unpacked {
    /// Adds a file, or those that are in it.
    fn open(&mut self, file: FoundFile, out: &mut Vec<FoundFile>) -> Result<()> {
        let opened = File::open(&file.path).map_err(|error| unreadable(&file.name, &error))?;
        let size = opened.metadata().map_err(|error| unreadable(&file.name, &error))?.len();
        let most = size.saturating_mul(RATIO_MAX).clamp(UNPACKED_FLOOR, UNPACKED_MAX);
        let head = file.head()?;
        if head.starts_with(b"PK\x03\x04") {
            return self.open_zip(&file, opened, most, out);
        }
        if head.get(257..262) == Some(b"ustar") {
            return self.open_tar(&file, opened, most, out);
        }
        out.push(file);
        Ok(())
    }

    fn open_zip(
        &mut self,
        archive: &FoundFile,
        opened: File,
        most: u64,
        out: &mut Vec<FoundFile>,
    ) -> Result<()> {
        let damaged =
            |error: zip::result::ZipError| Error::invalid(format!("{}: no sound zip: {error}", archive.name));
        let mut zip = zip::ZipArchive::new(opened).map_err(damaged)?;
        if zip.len() > FILES_MAX {
            return Err(too_many(&archive.name));
        }
        if (0..zip.len())
            .any(|at| matches!(zip.name_for_index(at), Some(Ok(name)) if name == "xl/workbook.xml"))
        {
            return Err(Error::invalid(format!(
                "{}: a spreadsheet cannot be read; save its sheet as CSV",
                archive.name
            )));
        }
        let mut left = most;
        for at in 0..zip.len() {
            let mut entry = zip.by_index(at).map_err(damaged)?;
            let name = entry.name().map_err(damaged)?.into_owned();
            if entry.is_file() && !is_hidden(&name) {
                self.unpack(archive, &name, &mut entry, &mut left, out)?;
            }
        }
        Ok(())
    }

    fn open_tar(
        &mut self,
        archive: &FoundFile,
        opened: File,
        most: u64,
        out: &mut Vec<FoundFile>,
    ) -> Result<()> {
        let damaged = |error: io::Error| Error::invalid(format!("{}: no sound tar: {error}", archive.name));
        let mut tar = tar::Archive::new(decompressed(opened).map_err(damaged)?);
        let mut left = most;
        for entry in tar.entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let name = entry.path().map_err(damaged)?.to_string_lossy().into_owned();
            if entry.header().entry_type().is_file() && !is_hidden(&name) {
                self.unpack(archive, &name, &mut entry, &mut left, out)?;
            }
        }
        Ok(())
    }

    fn unpack(
        &mut self,
        archive: &FoundFile,
        name: &str,
        entry: &mut impl Read,
        left: &mut u64,
        out: &mut Vec<FoundFile>,
    ) -> Result<()> {
        let shown = format!(
            "{}/{}",
            archive.name,
            name.chars().filter(|c| !c.is_control()).take(200).collect::<String>()
        );
        let too_large = || {
            Error::new(
                ErrorKind::TooLarge,
                format!(
                    "{shown}: the archive unpacks to far more than it is; unpack it by hand if that is right"
                ),
            )
        };
        let folder = match &self.folder {
            Some(folder) => Arc::clone(folder),
            None => {
                let folder = tempfile::Builder::new().prefix("wattlake-import-").tempdir();
                let folder = folder.map_err(|error| unreadable("the temporary folder", &error))?;
                Arc::clone(self.folder.insert(Arc::new(folder)))
            }
        };
        if out.len() >= FILES_MAX {
            return Err(too_many("the import"));
        }
        let path = folder.path().join(out.len().to_string());
        let mut file = File::create_new(&path).map_err(|error| unreadable(&shown, &error))?;
        let copied = io::copy(&mut entry.take(*left + 1), &mut file);
        let copied =
            copied.map_err(|error| Error::invalid(format!("{shown}: cannot be unpacked: {error}")))?;
        *left = left.checked_sub(copied).ok_or_else(too_large)?;
        self.bytes += copied;
        if self.bytes > UNPACKED_MAX {
            return Err(too_large());
        }
        let own = name.rsplit('/').next().unwrap_or(name);
        out.push(FoundFile { name: shown, stem: stem(own), path, is_named: false, unpacked: Some(folder) });
        Ok(())
    }
}
