//! A private Postgres server from Debian's binaries, one for the whole test process. It ends with the process: a shell
//! beside it waits for the pipe from us to close.

use std::{
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

struct Server {
    bin: PathBuf,
    port: u16,
}

/// An empty database.
pub(super) async fn database() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("test{}", COUNT.fetch_add(1, Ordering::Relaxed));
    tokio::task::spawn_blocking(move || {
        let server = server();
        assert!(server.psql(&format!("CREATE DATABASE {name}")), "create database");
        format!("postgres://wattlake@127.0.0.1:{}/{name}", server.port)
    })
    .await
    .expect("database")
}

impl Server {
    fn psql(&self, sql: &str) -> bool {
        let port = self.port.to_string();
        let mut command = Command::new(self.bin.join("psql"));
        command.args(["-h", "127.0.0.1", "-p", &port, "-U", "wattlake", "-d", "postgres", "-c", sql]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let bin = binaries();
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").expect("port").local_addr().expect("port").port();
        let dir = PathBuf::from(format!("/tmp/wattlake-catalog-pg-{}", std::process::id()));
        std::fs::create_dir(&dir).expect("folder");
        let script = format!(
            "'{bin}/initdb' -D {dir}/db -U wattlake -A trust --no-sync >{dir}/log 2>&1 || exit 1\n\
             '{bin}/postgres' -D {dir}/db -p {port} -k {dir} -h 127.0.0.1 >>{dir}/log 2>&1 & server=$!\n\
             cat >/dev/null; kill -INT $server; wait $server; rm -rf {dir}",
            bin = bin.display(),
            dir = dir.display(),
        );
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).current_dir("/tmp").stdin(Stdio::piped());
        // Postgres refuses to run as root.
        if let Some((user, group)) = postgres_user() {
            std::os::unix::fs::chown(&dir, Some(user), Some(group)).expect("chown");
            command.uid(user).gid(group);
        }
        // The pipe stays open until this process ends, however it ends.
        std::mem::forget(command.spawn().expect("start Postgres"));
        let server = Server { bin, port };
        let started = Instant::now();
        while !server.psql("SELECT 1") {
            let log = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
            assert!(started.elapsed() < Duration::from_secs(60), "Postgres did not start: {}", log());
            std::thread::sleep(Duration::from_millis(100));
        }
        server
    })
}

fn binaries() -> PathBuf {
    if let Some(bin) = std::env::var_os("TEST_POSTGRES_BIN") {
        return bin.into();
    }
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    versions.sort();
    versions.pop().expect("Postgres is missing; tests/run installs it, or: apt-get install postgresql")
}

/// The user and group to drop to, when this runs as root.
fn postgres_user() -> Option<(u32, u32)> {
    let id = |flag: &str, name: &[&str]| {
        let output = Command::new("id").arg(flag).args(name).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse::<u32>().ok()
    };
    (id("-u", &[])? == 0).then(|| Some((id("-u", &["postgres"])?, id("-g", &["postgres"])?)))?
}
