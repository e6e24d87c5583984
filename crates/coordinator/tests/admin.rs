//! The administrator's commands against a running coordinator, over its socket.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test program")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use serde_json::Value;
use tailwharf_coordinator::admin::cli::{self, Command};
use tailwharf_coordinator::admin::client::{Client, ClientError};
use tailwharf_coordinator::{Config, Coordinator, Handle, StartError};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

struct Site {
    dir: TempDir,
    config: Config,
    handle: Handle,
}

fn config(dir: &Path) -> Config {
    let file = dir.join("coordinator.toml");
    let text = format!(
        "server_url = \"http://127.0.0.1:1\"\nlisten = \"127.0.0.1:0\"\ndata_dir = {:?}\n\
         magic_dns_suffix = \"t.example.net\"\n[relay]\nenabled = false\n",
        dir.join("data")
    );
    fs::write(&file, text).unwrap();
    Config::load(&file).unwrap()
}

impl Site {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let handle = Coordinator::start(config.clone(), CancellationToken::new())
            .await
            .unwrap();
        Self { dir, config, handle }
    }

    fn client(&self) -> Client {
        Client::new(&self.config.admin_socket())
    }

    async fn try_run(&self, line: &str) -> anyhow::Result<(String, ExitCode)> {
        let words = std::iter::once("coordinator").chain(line.split(' '));
        let command = Line::try_parse_from(words)?.command;
        let mut out = Vec::new();
        let code = cli::run_to(&self.config, command, &mut out).await?;
        Ok((String::from_utf8(out)?, code))
    }

    async fn run(&self, line: &str) -> String {
        self.try_run(line)
            .await
            .unwrap_or_else(|error| panic!("{line}: {error:#}"))
            .0
    }

    async fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.run(&format!("{line} --output json")).await).unwrap()
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

const POLICY: &str =
    "{\n  // Tags of the operator.\n  \"tagOwners\": {\"tag:k8s\": []},\n  \"acls\": [],\n}\n";

#[tokio::test]
async fn the_socket_is_for_its_owner_alone() {
    let site = Site::start().await;
    let mode = fs::metadata(site.config.admin_socket())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = Coordinator::start(site.config.clone(), CancellationToken::new()).await;
    assert!(
        matches!(second, Err(StartError::AdminSocket { .. })),
        "two coordinators on one data directory"
    );
    site.run("user list").await;
    site.handle.stop().await;
}

#[tokio::test]
async fn without_a_coordinator_the_command_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::new(&config(dir.path()).admin_socket());
    let Err(error) = client
        .call::<Value>(http::Method::GET, &["tailnet", "-", "users"], None::<&Value>)
        .await
    else {
        panic!("somebody answered");
    };
    assert!(matches!(error, ClientError::NotRunning { .. }));
    assert!(error.to_string().contains("start it"), "{error}");
}

#[tokio::test]
async fn a_socket_left_behind_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    fs::create_dir(dir.path().join("data")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(config.admin_socket()).unwrap());
    let handle = Coordinator::start(config, CancellationToken::new())
        .await
        .unwrap();
    handle.stop().await;
}

#[tokio::test]
async fn users_are_created_listed_and_deleted() {
    let site = Site::start().await;
    let user = site
        .json("user create alice@example.com --role admin --name Alice")
        .await;
    assert_eq!(
        (&user["loginName"], &user["role"]),
        (&"alice@example.com".into(), &"admin".into())
    );
    let table = site.run("user list").await;
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0], ["ID", "LOGIN", "NAME", "ROLE", "NODES", "CREATED"]);
    assert_eq!(lines[1][1..5], ["alice@example.com", "Alice", "admin", "0"]);
    let twice = site.try_run("user create alice@example.com").await.unwrap_err();
    assert!(twice.to_string().contains("alice@example.com"), "{twice}");
    site.run("user delete alice@example.com").await;
    assert_eq!(site.json("user list").await, Value::Array(Vec::new()));
    assert!(site.try_run("user delete alice@example.com").await.is_err());
    assert!(site.try_run("user create bob --role king").await.is_err());
}

#[tokio::test]
async fn secrets_are_printed_once() {
    let site = Site::start().await;
    site.run("user create alice@example.com --role admin").await;
    site.run(&format!("policy set {}", site.file("policy", POLICY)))
        .await;
    let mut secrets = Vec::new();
    for line in [
        "key create --reusable --ephemeral --tags tag:k8s --expiry 12h",
        "key create --user alice@example.com",
        "oauth-client create --scopes auth_keys,devices:core --tags tag:k8s",
        "api-token create --user alice@example.com",
    ] {
        let made = site.json(line).await;
        secrets.push(made["key"].as_str().unwrap().to_owned());
        let table = site.run(line).await;
        assert!(
            table.contains("tskey-") && table.contains("not shown again"),
            "{table}"
        );
    }
    for line in ["key list", "oauth-client list", "api-token list"] {
        for output in ["", " --output json"] {
            let text = site.run(&format!("{line}{output}")).await;
            assert!(
                !text.contains("tskey-") && secrets.iter().all(|secret| !text.contains(secret)),
                "{text}"
            );
        }
    }
    let keys = site.run("key list").await;
    assert!(
        keys.contains("reusable,ephemeral") && keys.contains("tag:k8s") && keys.contains("alice@example.com"),
        "{keys}"
    );
    let id = site.json("key list").await[0]["id"].as_str().unwrap().to_owned();
    site.run(&format!("key delete {id}")).await;
    assert!(site.run("key list").await.contains("revoked"));
}

#[tokio::test]
async fn refusals_say_why() {
    let site = Site::start().await;
    for (line, reason) in [
        ("key create --tags tag:k8s", "tag:k8s"),
        ("key create", "user"),
        ("key create --user nobody@example.com", "nobody@example.com"),
        ("oauth-client create --scopes devices:core", "tag"),
        ("node delete nothing", "nothing"),
        ("node expire nothing", "nothing"),
    ] {
        let error = site.try_run(line).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{line}: {error}");
    }
    assert_eq!(site.json("node list").await, Value::Array(Vec::new()));
}

/// What is answered to `bytes` until the coordinator ends the connection.
async fn answered(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    // The coordinator may have heard enough before all is sent.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn bad_input_to_the_socket_ends_its_own_connection_alone() {
    let site = Site::start().await;
    let socket = site.config.admin_socket();
    let long = [
        b"GET /".as_slice(),
        &[b'a'; 300_000],
        b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
    .concat();
    let heads = format!(
        "GET /api/v2/tailnet/-/users HTTP/1.1\r\nHost: x\r\n{}\r\n",
        "X-Pad: abcdefghijklmnopqrstuvwxyz\r\n".repeat(10_000)
    );
    let body = format!(
        "POST /api/v2/tailnet/-/users HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n{}",
        " ".repeat(1_048_577)
    );
    for (bytes, status) in [
        (b"nonsense\r\n\r\n".as_slice(), "400"),
        (&long, "4"),
        (heads.as_bytes(), "431"),
        (body.as_bytes(), "413"),
    ] {
        let answer = answered(&socket, bytes).await;
        let begins = format!("HTTP/1.1 {status}");
        assert!(answer.starts_with(&begins), "{begins}: {answer}");
    }
    site.run("user list").await;
    site.handle.stop().await;
}

#[tokio::test]
async fn who_says_nothing_to_the_socket_is_cut_off() {
    let site = Site::start().await;
    let socket = site.config.admin_socket();
    // More than are served at one time: the others wait until the silent ones are cut off.
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(UnixStream::connect(&socket).await.unwrap());
    }
    tokio::time::pause();
    site.run("user list").await;
    for mut stream in silent {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
    }
    tokio::time::resume();
    site.handle.stop().await;
}

/// What is wrong, and where. Line and column are those of the word that is wrong.
const FAULTS: [(&str, &str, &str); 4] = [
    ("{\n  \"acls\": [\n}\n", "line 3, column 1", "expected"),
    (
        "{\n  \"acl\": [],\n}\n",
        "line 2, column 3",
        "did you mean \"acls\"",
    ),
    (
        "{\"acls\": [\n  {\"action\": \"accept\", \"src\": [\"group:x\"], \"dst\": [\"*:*\"]}\n]}\n",
        "line 2, column 32",
        "group:x",
    ),
    (
        "{\"acls\": [\n  {\"action\": \"accept\", \"src\": [\"*\"],\n   \"dst\": [\"tag:x:*\"]}\n]}\n",
        "line 3, column 12",
        "tag:x",
    ),
];

#[tokio::test]
async fn a_faulty_policy_is_refused_with_its_place_wherever_it_comes_from() {
    let site = Site::start().await;
    site.run(&format!("policy set {}", site.file("good", POLICY)))
        .await;
    for (number, (text, place, word)) in FAULTS.into_iter().enumerate() {
        let file = site.file(&format!("bad{number}"), text);
        let (told, code) = site.try_run(&format!("policy set {file}")).await.unwrap();
        assert_eq!(code, ExitCode::FAILURE, "{told}");
        assert!(told.contains(place) && told.contains(word), "{told}");

        let api = site
            .client()
            .send(http::Method::POST, &["tailnet", "-", "acl"], text.into())
            .await
            .unwrap_err();
        let ClientError::Refused { status, message } = api else {
            panic!("{api}");
        };
        assert_eq!(status, http::StatusCode::BAD_REQUEST);
        assert!(message.starts_with(place) && message.contains(word), "{message}");
        assert_eq!(site.run("policy get").await, POLICY, "the old policy stays");

        let fresh = tempfile::tempdir().unwrap();
        let mut first = config(fresh.path());
        first.policy_file = Some(file.clone().into());
        let error = Coordinator::start(first, CancellationToken::new())
            .await
            .unwrap_err();
        let told = error.to_string();
        assert!(
            told.contains(&file) && told.contains(place) && told.contains(word),
            "{told}"
        );
    }
    site.handle.stop().await;
}

#[tokio::test]
async fn a_policy_is_checked_before_it_is_set() {
    let site = Site::start().await;
    let good = site.file("good.hujson", POLICY);
    let bad = site.file("bad.hujson", "{\n  \"acl\": [],\n}\n");
    let (text, code) = site.try_run(&format!("policy check {bad}")).await.unwrap();
    assert_eq!(code, ExitCode::FAILURE);
    assert_eq!(
        text,
        format!("{bad}: line 2, column 3: unknown field \"acl\" in the policy; did you mean \"acls\"?\n")
    );
    let (text, code) = site.try_run(&format!("policy check {good}")).await.unwrap();
    assert_eq!(
        (text.as_str(), code),
        ("the policy is valid\n", ExitCode::SUCCESS)
    );
    site.run(&format!("policy set {good}")).await;
    let (text, code) = site.try_run(&format!("policy set {bad}")).await.unwrap();
    assert_eq!(code, ExitCode::FAILURE);
    assert!(text.contains("line 2") && text.contains("former"), "{text}");
    assert_eq!(site.run("policy get").await, POLICY);
    assert_eq!(site.json("policy get").await["acls"], Value::Array(Vec::new()));
}

#[tokio::test]
async fn services_names_and_settings_are_managed() {
    let site = Site::start().await;
    let policy = site.file("policy.hujson", r#"{"tagOwners": {"tag:web": []}, "acls": []}"#);
    site.run(&format!("policy set {policy}")).await;

    let service = site
        .json("service set web --ports tcp:443,tcp:80 --tags tag:web")
        .await;
    assert_eq!(service["name"], "svc:web");
    let table = site.run("service list").await;
    assert!(
        table.contains("svc:web") && table.contains("tcp:443,tcp:80"),
        "{table}"
    );
    assert_eq!(site.json("service hosts web").await, serde_json::json!([]));
    site.run("service delete svc:web").await;
    assert_eq!(site.json("service list").await, serde_json::json!([]));

    site.run("dns nameservers 192.0.2.53").await;
    site.run("dns split corp.example.com 192.0.2.54").await;
    let dns = site.run("dns search corp.example.com --output json").await;
    let file = site.file("dns.json", &dns.replace("192.0.2.53", "192.0.2.99"));
    let dns = site.run(&format!("dns set {file}")).await;
    for text in ["192.0.2.99", "corp.example.com by 192.0.2.54"] {
        assert!(dns.contains(text), "{text}: {dns}");
    }

    let settings = site
        .run("settings set --device-approval true --key-lifetime-days 0")
        .await;
    assert!(settings.contains("never"), "{settings}");
    assert_eq!(site.json("settings get").await["devicesApprovalOn"], true);

    let log = site.json("log --limit 1").await;
    assert_eq!(log[0]["target"]["type"], "SETTINGS");
    assert_eq!(site.json("login list").await, serde_json::json!([]));
    assert_eq!(site.json("route list").await, serde_json::json!([]));
    site.handle.stop().await;
}

#[tokio::test]
async fn people_get_roles_and_links() {
    let site = Site::start().await;
    site.run("user create alice@example.com").await;
    site.run("user role alice@example.com admin").await;
    assert_eq!(site.json("user list").await[0]["role"], "admin");
    let link = site.json("user login-link alice@example.com").await;
    let url = link["url"].as_str().unwrap();
    assert!(url.starts_with("http://127.0.0.1:1/login/"), "{url}");
    let error = site.try_run("user login-link bob@example.com").await.unwrap_err();
    assert!(error.to_string().contains("bob@example.com"), "{error:#}");
    let error = site
        .try_run("login approve nothing --user alice@example.com")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("nothing"), "{error:#}");
    site.handle.stop().await;
}
