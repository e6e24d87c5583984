//! The life of a device at our coordinator, with the official client: logins, approval, ends, names, certificates, routes, services.

use std::fs;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tailwharf_testkit::process::{Process, run};
use tailwharf_testkit::requirements::Need;
use tailwharf_testkit::tailnet::SUFFIX;
use tailwharf_testkit::wait::{eventually, eventually_within};
use tailwharf_testkit::{Bridge, Lab, OfficialClient, Tailnet};
use tempfile::TempDir;

const ALICE: &str = "alice@example.com";
/// Everybody reaches the services of tag:server on port 80; port 18090 of the desk is for devices whose tier is prod.
const POLICY: &str = r#"{
  "tagOwners": {"tag:server": ["alice@example.com"], "tag:router": ["alice@example.com"], "tag:public": ["alice@example.com"]},
  "autoApprovers": {"routes": {"10.98.0.0/16": ["tag:router"]}},
  "postures": {"posture:prod": ["custom:tier == 'prod'"]},
  "nodeAttrs": [{"target": ["tag:public"], "attr": ["funnel"]}],
  "ssh": [{"action": "check", "checkPeriod": "1h", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]}],
  "grants": [
    {"src": ["*"], "dst": ["tag:server", "svc:web", "tag:router"], "ip": ["*"]},
    {"src": ["*"], "dst": ["autogroup:member"], "ip": ["tcp:18091"]},
    {"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["tcp:22"]},
    {"src": ["*"], "dst": ["autogroup:member"], "ip": ["tcp:18090"], "srcPosture": ["posture:prod"]},
  ],
}"#;
const OPEN_PORT: &str = "18091";
const GUARDED_PORT: &str = "18090";
/// Where the public gateway listens for the port 443.
const GATEWAY_PORT: u16 = 18443;

struct Fixture {
    /// Alice's machine, which looks at the others.
    desk: OfficialClient,
    _servers: Vec<Process>,
    tailnet: Tailnet,
    bridge: Bridge,
    dir: TempDir,
}

fn main() -> ExitCode {
    let needs = [Need::Root, Need::OfficialClient, Need::Binary];
    tailwharf_e2e::run(
        &needs,
        start,
        &[
            ("a_login_by_url_waits_for_a_person", login_by_url),
            ("a_login_that_is_denied_joins_nothing", login_denied),
            (
                "a_device_waits_for_approval_where_the_tailnet_asks_for_it",
                approval,
            ),
            ("names_and_tags_change_live", names_and_tags),
            ("an_expired_device_logs_in_again_as_the_same", expiry),
            ("logout_ends_a_device", logout),
            ("netcheck_and_dns_status_know_the_tailnet", netcheck_and_dns),
            (
                "tailscale_cert_gets_a_certificate_of_the_coordinator",
                certificate,
            ),
            ("a_posture_change_cuts_access_within_five_seconds", posture),
            ("routes_and_exit_nodes_are_approved", routes),
            ("a_service_is_served_by_the_host_that_was_approved", service),
            ("funnel_shows_a_page_to_the_internet", funnel),
            ("ssh_with_check_waits_for_a_fresh_sign_in", ssh_check),
        ],
    )
}

fn start() -> Result<Fixture> {
    let dir = tempfile::Builder::new().prefix("tailwharf-life-").tempdir()?;
    let bridge = Bridge::create()?;
    let gateway = format!(
        "[[funnel.listeners]]\nlisten = \"{}:{GATEWAY_PORT}\"\nport = 443\n",
        bridge.host()
    );
    let data = dir.path().join("coordinator");
    let tailnet = Tailnet::start_with(bridge.host(), &data, POLICY, &gateway)?;
    let desk = Lab::client(&bridge, &tailnet, dir.path(), "desk", ALICE, "admin")?;
    let servers = [OPEN_PORT, GUARDED_PORT]
        .map(|port| serve(&desk, dir.path(), port))
        .into_iter()
        .collect::<Result<_>>()?;
    Ok(Fixture {
        desk,
        _servers: servers,
        tailnet,
        bridge,
        dir,
    })
}

/// A web server beside a client, whose page is `here`.
fn serve(client: &OfficialClient, dir: &std::path::Path, port: &str) -> Result<Process> {
    let root = dir.join("web");
    fs::create_dir_all(&root)?;
    fs::write(root.join("index.html"), "here\n")?;
    let mut command = client.namespace().command("python3");
    command
        .args(["-m", "http.server", port, "--directory"])
        .arg(&root);
    Process::start("web", &mut command, &dir.join(format!("web-{port}.log")))
}

impl Fixture {
    /// A machine with the official client that joined nothing yet.
    fn machine(&self, name: &str, variables: &[(&str, &str)]) -> Result<OfficialClient> {
        let home = self.dir.path().join(name);
        fs::create_dir_all(&home)?;
        OfficialClient::start_with(self.bridge.join(name)?, &home, variables)
    }

    /// A machine that joined by a key with these options.
    fn joined(&self, name: &str, options: &[&str], variables: &[(&str, &str)]) -> Result<OfficialClient> {
        let machine = self.machine(name, variables)?;
        machine.join(self.tailnet.url(), &self.tailnet.key(options)?, name)?;
        Ok(machine)
    }

    /// `tailscale up` that goes on until the client is let in.
    fn up(&self, machine: &OfficialClient, name: &str, more: &[&str]) -> Result<Process> {
        let server = format!("--login-server={}", self.tailnet.url());
        let hostname = format!("--hostname={name}");
        let mut command = machine.tailscale(&["up", &server, &hostname, "--timeout=60s"]);
        command.args(more);
        Process::start(
            "up",
            &mut command,
            &self.dir.path().join(format!("up-{name}.log")),
        )
    }

    fn admin(&self, words: &[&str]) -> Result<Value> {
        self.tailnet.administer(words)
    }

    /// The device whose name begins so, as the administrator sees it.
    fn device(&self, name: &str) -> Result<Value> {
        let nodes = self.tailnet.nodes()?;
        let named = |node: &&Value| node["name"].as_str().is_some_and(|found| found.starts_with(name));
        nodes
            .iter()
            .find(named)
            .cloned()
            .with_context(|| format!("no device {name}"))
    }

    /// Calls the API as an administrator.
    fn api(&self, method: &str, path: &str, body: &Value) -> Result<String> {
        let token = self.admin(&["api-token", "create", "--user", ALICE])?;
        let bearer = format!(
            "authorization: Bearer {}",
            token["key"].as_str().context("no token")?
        );
        let url = format!("{}/api/v2/{path}", self.tailnet.url());
        run(Command::new("curl").args([
            "--silent",
            "--show-error",
            "--fail-with-body",
            "--max-time",
            "10",
            "--request",
            method,
            "--header",
            &bearer,
            "--header",
            "content-type: application/json",
            "--data",
            &body.to_string(),
            &url,
        ]))
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.admin(&["node", "delete", name]).map(drop)
    }
}

fn login_url(machine: &OfficialClient) -> Result<String> {
    eventually("the client shows an address to log in at", || {
        let status = machine.json(&["status", "--json"])?;
        let url = status["AuthURL"].as_str().unwrap_or_default();
        ensure!(!url.is_empty(), "{}", status["BackendState"]);
        Ok(url.to_owned())
    })
    .with_context(|| machine.log_end(20))
}

fn login_by_url(fixture: &mut Fixture) -> Result<()> {
    let machine = fixture.machine("guest", &[])?;
    let up = fixture.up(&machine, "guest", &[])?;
    let url = login_url(&machine)?;
    ensure!(url.starts_with(fixture.tailnet.url()), "{url}");
    let waiting = fixture.admin(&["login", "list"])?;
    ensure!(waiting.to_string().contains("guest"), "{waiting}");
    ensure!(
        machine.state()? == "NeedsLogin",
        "it is in before anybody said so"
    );
    fixture.admin(&["login", "approve", &url, "--user", ALICE])?;
    machine.becomes("Running")?;
    let again = fixture.admin(&["login", "approve", &url, "--user", ALICE]);
    ensure!(again.is_err(), "an address to log in at was good for two logins");
    let peer = eventually("the desk sees the guest", || fixture.desk.peer("guest"))?;
    ensure!(peer["Online"] == true, "{peer}");
    drop(up);
    fixture.remove("guest")
}

fn login_denied(fixture: &mut Fixture) -> Result<()> {
    let machine = fixture.machine("stranger", &[])?;
    let up = fixture.up(&machine, "stranger", &[])?;
    let url = login_url(&machine)?;
    fixture.admin(&["login", "deny", &url])?;
    eventually("the request is gone", || {
        let waiting = fixture.admin(&["login", "list"])?;
        ensure!(
            !waiting
                .to_string()
                .contains(url.rsplit('/').next().unwrap_or_default()),
            "{waiting}"
        );
        Ok(())
    })?;
    ensure!(machine.state()? != "Running", "the stranger is in");
    ensure!(fixture.device("stranger").is_err(), "the stranger has a device");
    drop(up);
    Ok(())
}

fn approval(fixture: &mut Fixture) -> Result<()> {
    fixture.admin(&["settings", "set", "--device-approval", "true"])?;
    let machine = fixture.machine("newcomer", &[])?;
    let key = fixture.tailnet.key(&["--user", ALICE, "--no-preauthorize"])?;
    let up = fixture.up(&machine, "newcomer", &[&format!("--auth-key={key}")])?;
    machine.becomes("NeedsMachineAuth")?;
    ensure!(
        fixture.desk.peer("newcomer").is_err(),
        "the desk sees a device that nobody approved"
    );
    fixture.admin(&["node", "approve", "newcomer"])?;
    machine.becomes("Running")?;
    eventually("the desk sees the newcomer", || fixture.desk.peer("newcomer"))?;
    drop(up);
    fixture.admin(&["settings", "set", "--device-approval", "false"])?;
    fixture.remove("newcomer")
}

fn names_and_tags(fixture: &mut Fixture) -> Result<()> {
    let machine = fixture.joined("plain", &["--user", ALICE], &[])?;
    machine.run(&["set", "--hostname=fancy"])?;
    eventually("the desk sees the new host name", || fixture.desk.peer("fancy"))?;
    fixture.admin(&["node", "rename", "fancy", "given"])?;
    eventually("the desk sees the given name", || fixture.desk.peer("given"))?;
    fixture.admin(&["node", "tag", "given", "tag:server"])?;
    eventually("the client knows its tag", || {
        let status = machine.json(&["status", "--json"])?;
        ensure!(
            status["Self"]["Tags"] == json!(["tag:server"]),
            "{}",
            status["Self"]["Tags"]
        );
        Ok(())
    })?;
    let refused = fixture.admin(&["node", "tag", "given", "tag:unknown"]);
    ensure!(refused.is_err(), "a tag that the policy does not know was given");
    fixture.remove("given")
}

fn expiry(fixture: &mut Fixture) -> Result<()> {
    let machine = fixture.joined("phone", &["--user", ALICE], &[])?;
    let (address, id) = (machine.address()?, fixture.device("phone")?["id"].clone());
    fixture.admin(&["node", "expire", "phone"])?;
    machine.becomes("NeedsLogin")?;
    let key = fixture.tailnet.key(&["--user", ALICE])?;
    let server = format!("--login-server={}", fixture.tailnet.url());
    machine.run(&[
        "up",
        &server,
        "--hostname=phone",
        "--accept-routes",
        "--force-reauth",
        &format!("--auth-key={key}"),
        "--timeout=30s",
    ])?;
    machine.becomes("Running")?;
    ensure!(machine.address()? == address, "the address changed");
    ensure!(fixture.device("phone")?["id"] == id, "it is another device now");
    fixture.remove("phone")
}

fn logout(fixture: &mut Fixture) -> Result<()> {
    let machine = fixture.joined("visitor", &["--user", ALICE, "--ephemeral"], &[])?;
    eventually("the desk sees the visitor", || fixture.desk.peer("visitor"))?;
    machine.run(&["logout"])?;
    machine.becomes("NeedsLogin")?;
    eventually("the device is gone", || {
        ensure!(fixture.device("visitor").is_err(), "it is still there");
        ensure!(fixture.desk.peer("visitor").is_err(), "the desk still sees it");
        Ok(())
    })
}

fn netcheck_and_dns(fixture: &mut Fixture) -> Result<()> {
    eventually("netcheck finds the relay", || {
        let report = fixture.desk.json(&["netcheck", "--format=json"])?;
        ensure!(
            report["PreferredDERP"] == 900 && report["UDP"] == true,
            "{report}"
        );
        Ok(())
    })?;
    fixture.admin(&["dns", "split", "corp.example", "192.0.2.53"])?;
    eventually("the client knows how names are resolved", || {
        let status = fixture.desk.run(&["dns", "status"])?;
        for word in [SUFFIX, "corp.example", "192.0.2.53"] {
            ensure!(status.contains(word), "no {word} in {status}");
        }
        Ok(())
    })?;
    fixture.admin(&["dns", "split", "corp.example"]).map(drop)
}

/// Turns certificates on. The file with the root, and the directory of the authority.
fn certificates(fixture: &Fixture) -> Result<(String, String)> {
    fixture.admin(&["settings", "set", "--https", "true"])?;
    let root = fixture.dir.path().join("root.pem");
    fs::write(&root, fixture.tailnet.root_certificate()?)?;
    let directory = format!("{}/acme/directory", fixture.tailnet.url());
    Ok((root.display().to_string(), directory))
}

fn certificate(fixture: &mut Fixture) -> Result<()> {
    let (root, directory) = certificates(fixture)?;
    let variables = [
        ("TS_DEBUG_ACME_DIRECTORY_URL", directory.as_str()),
        ("SSL_CERT_FILE", root.as_str()),
    ];
    let machine = fixture.joined("shop", &["--user", ALICE], &variables)?;
    let name = format!("shop.{SUFFIX}");
    let (chain, key) = (
        fixture.dir.path().join("shop.crt"),
        fixture.dir.path().join("shop.key"),
    );
    let (chain, key) = (chain.display().to_string(), key.display().to_string());
    machine
        .run(&["cert", "--cert-file", &chain, "--key-file", &key, &name])
        .with_context(|| machine.log_end(30))?;
    let said =
        run(Command::new("openssl").args(["verify", "-CAfile", &root, "-verify_hostname", &name, &chain]))?;
    ensure!(said.contains("OK"), "{said}");
    let other = machine.run(&[
        "cert",
        "--cert-file",
        &chain,
        "--key-file",
        &key,
        &format!("desk.{SUFFIX}"),
    ]);
    ensure!(other.is_err(), "the shop got a certificate for the desk");
    fixture.remove("shop")
}

fn posture(fixture: &mut Fixture) -> Result<()> {
    let machine = fixture.joined("worker", &["--user", ALICE], &[])?;
    let desk = fixture.desk.address()?;
    let (open, guarded) = (
        format!("http://{desk}:{OPEN_PORT}/"),
        format!("http://{desk}:{GUARDED_PORT}/"),
    );
    eventually("the open port answers", || machine.curl(&open))?;
    ensure!(
        quick(&machine, &guarded).is_err(),
        "the guarded port answers a device without tier"
    );
    let id = fixture.device("worker")?["id"]
        .as_str()
        .context("no id")?
        .to_owned();
    let attribute = format!("device/{id}/attributes/custom:tier");
    fixture.api("POST", &attribute, &json!({"value": "prod"}))?;
    let soon = Duration::from_secs(5);
    eventually_within(soon, "the guarded port opens", || quick(&machine, &guarded))?;
    fixture.api("POST", &attribute, &json!({"value": "test"}))?;
    eventually_within(soon, "the guarded port closes", || {
        ensure!(quick(&machine, &guarded).is_err(), "it still answers");
        Ok(())
    })?;
    machine.curl(&open)?;
    fixture.remove("worker")
}

/// A request that is given up after a second.
fn quick(machine: &OfficialClient, url: &str) -> Result<String> {
    run(machine
        .namespace()
        .command("curl")
        .args(["-sSf", "--max-time", "1", url]))
}

fn routes(fixture: &mut Fixture) -> Result<()> {
    let machine = fixture.joined("router", &["--tags", "tag:router"], &[])?;
    machine.run(&[
        "set",
        "--advertise-routes=10.98.1.0/24,10.99.0.0/24",
        "--advertise-exit-node",
    ])?;
    let routes_of = |fixture: &Fixture| -> Result<String> {
        let peer = fixture.desk.peer("router")?;
        Ok(format!(
            "{} exit {}",
            peer["PrimaryRoutes"], peer["ExitNodeOption"]
        ))
    };
    eventually(
        "the route that the policy approves is there, and nothing else",
        || {
            let found = routes_of(fixture)?;
            ensure!(found == "[\"10.98.1.0/24\"] exit false", "{found}");
            Ok(())
        },
    )?;
    fixture.admin(&[
        "route",
        "approve",
        "router",
        "10.98.1.0/24",
        "10.99.0.0/24",
        "0.0.0.0/0",
        "::/0",
    ])?;
    eventually("the routes that an administrator approved are there", || {
        let found = routes_of(fixture)?;
        ensure!(
            found == "[\"10.98.1.0/24\",\"10.99.0.0/24\"] exit true",
            "{found}"
        );
        Ok(())
    })?;
    let second = fixture.joined("spare", &["--tags", "tag:router"], &[])?;
    second.run(&["set", "--advertise-routes=10.98.1.0/24"])?;
    eventually("the second router's route is approved", || {
        let table = run(&mut fixture.tailnet.admin(&["route", "list"]))?;
        let told = |line: &str| line.contains("spare") && line.contains("10.98.1.0/24");
        ensure!(table.lines().any(told), "{table}");
        Ok(())
    })?;
    machine.run(&["down"])?;
    eventually("the spare router takes over", || {
        let peer = fixture.desk.peer("spare")?;
        ensure!(
            peer["PrimaryRoutes"] == json!(["10.98.1.0/24"]),
            "{}",
            peer["PrimaryRoutes"]
        );
        Ok(())
    })?;
    fixture.remove("spare")?;
    fixture.remove("router")
}

fn service(fixture: &mut Fixture) -> Result<()> {
    fixture.admin(&["service", "set", "svc:web", "--ports", "tcp:80"])?;
    let machine = fixture.joined("host", &["--tags", "tag:server"], &[])?;
    let _web = serve(&machine, fixture.dir.path(), "18092")?;
    machine.run(&["serve", "--service=svc:web", "--http=80", "18092"])?;
    eventually("the host offers itself", || {
        let hosts = fixture.admin(&["service", "hosts", "svc:web"])?;
        ensure!(hosts.as_array().is_some_and(|hosts| hosts.len() == 1), "{hosts}");
        Ok(())
    })?;
    fixture.admin(&["service", "approve", "svc:web", "host"])?;
    let page = eventually("the service answers at the desk", || {
        fixture.desk.curl(&format!("http://web.{SUFFIX}/"))
    })
    .with_context(|| machine.log_end(30))?;
    ensure!(page == "here\n", "{page}");
    fixture.admin(&["service", "deny", "svc:web", "host"])?;
    eventually("a host that was denied is asked no more", || {
        ensure!(
            quick(&fixture.desk, &format!("http://web.{SUFFIX}/")).is_err(),
            "it still answers"
        );
        Ok(())
    })?;
    fixture.admin(&["service", "delete", "svc:web"])?;
    fixture.remove("host")
}

/// A request from outside of the tailnet to a name on it, by the public gateway.
fn public(fixture: &Fixture, root: &str, name: &str) -> Result<String> {
    let way = format!("{name}:443:{}:{GATEWAY_PORT}", fixture.bridge.host());
    let url = format!("https://{name}/");
    run(Command::new("curl").args([
        "-sS",
        "--fail",
        "--max-time",
        "20",
        "--cacert",
        root,
        "--connect-to",
        &way,
        &url,
    ]))
}

fn funnel(fixture: &mut Fixture) -> Result<()> {
    let (root, directory) = certificates(fixture)?;
    let variables = [
        ("TS_DEBUG_ACME_DIRECTORY_URL", directory.as_str()),
        ("SSL_CERT_FILE", root.as_str()),
    ];
    let machine = fixture.joined("stall", &["--tags", "tag:public"], &variables)?;
    let _web = serve(&machine, fixture.dir.path(), "18093")?;
    let name = format!("stall.{SUFFIX}");
    ensure!(
        public(fixture, &root, &name).is_err(),
        "it is public before anybody said so"
    );
    machine
        .run(&["funnel", "--bg", "18093"])
        .with_context(|| machine.log_end(30))?;
    let page = eventually_within(Duration::from_secs(60), "the internet sees the page", || {
        public(fixture, &root, &name)
    })
    .with_context(|| machine.log_end(40))?;
    ensure!(page == "here\n", "{page}");
    let desk = public(fixture, &root, &format!("desk.{SUFFIX}"));
    ensure!(desk.is_err(), "a device without the attribute is public");
    ensure!(
        fixture.desk.peer("funnel-gateway").is_err(),
        "the desk sees the gateway"
    );
    machine.run(&["funnel", "reset"])?;
    eventually("it is not public any more", || {
        ensure!(public(fixture, &root, &name).is_err(), "it still is");
        Ok(())
    })?;
    fixture.remove("stall")
}

/// What alice's browser does at the page with this address: signs in by a link, opens it, confirms.
fn confirm(fixture: &Fixture, page: &str) -> Result<()> {
    let link = fixture.admin(&["user", "login-link", ALICE])?;
    let link = link["url"].as_str().context("no link")?;
    let jar = fixture.dir.path().join("cookies").display().to_string();
    let browse = |more: &[&str]| {
        run(Command::new("curl")
            .args([
                "-sS",
                "--fail",
                "--max-time",
                "10",
                "--cookie",
                &jar,
                "--cookie-jar",
                &jar,
            ])
            .args(more))
    };
    browse(&["--request", "POST", link])?;
    let text = browse(&[page])?;
    let token = text
        .split("name=\"form_token\" value=\"")
        .last()
        .and_then(|rest| rest.split('"').next())
        .context("the page has no form")?;
    let form = format!("form_token={token}&decision=confirm");
    let said = browse(&["--data", &form, page])?;
    ensure!(said.contains("Confirmed"), "{said}");
    Ok(())
}

fn ssh_check(fixture: &mut Fixture) -> Result<()> {
    let machine = fixture.joined("box", &["--user", ALICE], &[])?;
    machine.run(&["set", "--ssh"])?;
    let target = format!("root@{}", machine.address()?);
    let log_in = |limit: &str| {
        let mut command = fixture.desk.namespace().command("timeout");
        command.args([
            limit,
            "ssh",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "ConnectTimeout=5",
            &target,
            "echo in",
        ]);
        command
    };
    let log = fixture.dir.path().join("ssh.log");
    let session = Process::start("ssh", &mut log_in("60"), &log)?;
    let page = eventually_within(Duration::from_secs(30), "the client names the page", || {
        let text = fs::read_to_string(&log)?;
        let page = text.split_whitespace().find(|word| word.contains("/check/"));
        page.map(str::to_owned).with_context(|| text.clone())
    })
    .with_context(|| machine.log_end(40))?;
    ensure!(
        !fs::read_to_string(&log)?.lines().any(|line| line == "in"),
        "nobody confirmed"
    );
    confirm(fixture, &page)?;
    eventually("the session goes on", || {
        let text = fs::read_to_string(&log)?;
        ensure!(text.lines().any(|line| line.trim() == "in"), "{text}");
        Ok(())
    })
    .with_context(|| machine.log_end(40))?;
    drop(session);
    let again = run(&mut log_in("20"))?;
    ensure!(again.contains("in"), "within the hour nobody is asked: {again}");
    fixture.remove("box")
}
