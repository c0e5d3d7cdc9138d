//! A disk of its own: an ext4 file system in a file, whose power can be cut.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use tempfile::TempDir;

/// Cuts the power of a disk.
pub(crate) struct Switch(Child);

impl Switch {
    /// What was not synced is gone, and every write from now on fails.
    pub(crate) fn cut_power(mut self) {
        self.0.stdin.take().expect("input").write_all(b"\n").expect("cut");
        assert!(self.0.wait().expect("wait").success());
    }
}

pub(crate) struct Disk {
    folder: TempDir,
    is_mounted: bool,
}

fn run(command: &mut Command) -> Result<(), String> {
    let Output { status, stderr, .. } = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&stderr).trim())),
    }
}

impl Disk {
    /// Makes and mounts one; `Err` says why that cannot be done here.
    pub(crate) fn new(mib: u64) -> Result<Self, String> {
        let folder = TempDir::new().map_err(|error| error.to_string())?;
        let image = folder.path().join("image");
        let file = std::fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(mib << 20).map_err(|error| error.to_string())?;
        std::fs::create_dir(folder.path().join("mount")).map_err(|error| error.to_string())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        let mut disk = Self { folder, is_mounted: false };
        disk.mount()?;
        Ok(disk)
    }

    /// One for a test, or `None` after saying so where none can be mounted.
    pub(crate) fn or_skip(mib: u64, test: &str) -> Option<Self> {
        match Self::new(mib) {
            Ok(disk) => Some(disk),
            Err(reason) => {
                // Past the test harness, which would keep the words of a passing test to itself.
                let words = format!("SKIPPED {test}: no ext4 file system can be mounted here: {reason}\n");
                let _ = std::io::stderr().write_all(words.as_bytes());
                None
            }
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    /// A folder that the disk's fate does not touch.
    pub(crate) fn outside(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn mount(&mut self) -> Result<(), String> {
        run(Command::new("mount")
            .args(["-o", "loop,errors=remount-ro"])
            .args([self.folder.path().join("image"), self.path()]))?;
        self.is_mounted = true;
        Ok(())
    }

    /// Gets ready to cut the power within a millisecond.
    pub(crate) fn switch(&self) -> Switch {
        // EXT4_IOC_SHUTDOWN with NOLOGFLUSH.
        let script = "import fcntl, os, struct, sys\n\
                      disk = os.open(sys.argv[1], os.O_RDONLY)\n\
                      print('ready', flush=True)\n\
                      sys.stdin.readline()\n\
                      fcntl.ioctl(disk, 0x8004587D, struct.pack('I', 2))";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .arg(self.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let mut ready = [0; 6];
        child.stdout.as_mut().expect("output").read_exact(&mut ready).expect("ready");
        Switch(child)
    }

    /// An error that has the file system go read-only under those who write to it.
    pub(crate) fn break_file_system(&self) {
        let source = Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(self.path()).output();
        let source = String::from_utf8(source.expect("findmnt").stdout).expect("device");
        let device = source.trim().trim_start_matches("/dev/");
        let trigger = format!("/sys/fs/ext4/{device}/trigger_fs_error");
        std::fs::write(&trigger, "planted").unwrap_or_else(|error| panic!("{trigger}: {error}"));
    }

    /// Repairs and mounts again; nobody may have files open.
    pub(crate) fn power_on(&mut self) {
        self.unmount();
        // 0 and 1: sound, or repaired.
        let checked = Command::new("e2fsck").arg("-p").arg(self.folder.path().join("image")).output();
        assert!(checked.expect("e2fsck").status.code().is_some_and(|code| code <= 1));
        self.mount().expect("mount");
    }

    fn unmount(&mut self) {
        // The kernel may need a moment after the last process is gone.
        for _ in 0..100 {
            if run(Command::new("umount").arg(self.path())).is_ok() {
                self.is_mounted = false;
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("{} is busy", self.path().display());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = run(Command::new("umount").arg("-l").arg(self.path()));
        }
    }
}
