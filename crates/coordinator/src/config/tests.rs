use std::time::Duration;

use super::*;

const MINIMAL: &str = r#"
    server_url = "http://10.0.0.1:8080"
    listen = "10.0.0.1:8080"
    data_dir = "/var/lib/tailwharf"
    magic_dns_suffix = "tail1234.ts.net"
"#;

fn parse(more: &str) -> Result<Config, ConfigError> {
    Config::parse(&format!("{MINIMAL}\n{more}"), Path::new("c.toml"))
}

#[test]
fn four_values_are_enough() {
    let config = parse("").unwrap();
    assert!(config.relay.enabled);
    assert_eq!(config.relay_hostname(), "10.0.0.1");
    assert_eq!(config.prefixes, Prefixes::default());
    assert_eq!(config.nodes.ephemeral_grace(), Duration::from_secs(300));
}

#[test]
fn unknown_keys_are_refused_with_their_name() {
    for more in [
        "color = 1",
        "[relay]\nport = 1",
        "[prefixes]\nv5 = \"::/0\"",
        "[nodes]\nx = 1",
    ] {
        let error = parse(more).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("unknown field"), "{cause}");
    }
}

#[test]
fn values_of_no_use_are_refused() {
    for (more, key) in [
        ("[prefixes]\nv4 = \"100.64.0.0/31\"", "prefixes.v4"),
        ("[prefixes]\nv6 = \"fd7a::/97\"", "prefixes.v6"),
        ("[limits]\nconnections = 0", "limits"),
        (
            "[[funnel.listeners]]\nlisten = \"0.0.0.0:80\"",
            "funnel.listeners",
        ),
        (
            "[oidc]\nissuer = \"https://a\"\nclient_id = \"b\"",
            "oidc.allowed_domains",
        ),
        (
            "[oidc]\nissuer = \"http://a\"\nclient_id = \"b\"\nallowed_domains = [\"*\"]",
            "oidc.issuer",
        ),
        (
            "[oidc]\nissuer = \"https://a\"\nclient_id = \"b\"\nallowed_domains = [\"*\"]\nscopes = [\"email\"]",
            "oidc.scopes",
        ),
        ("[acme]", "acme"),
        ("[relay]\nregion_id = 0", "relay.region_id"),
        ("[limits]\ncalls_per_second = 0", "limits"),
        ("[[issuers]]\nurl = \"http://a\"", "issuers.url"),
        (
            "[[issuers]]\nurl = \"https://a\"\n[[issuers]]\nurl = \"https://a\"",
            "issuers.url",
        ),
    ] {
        assert!(parse(more).unwrap_err().to_string().contains(key), "{more}");
    }
    let https = MINIMAL.replace("http://10.0.0.1:8080", "https://hub.example.com");
    let by_acme = Config::parse(&format!("{https}\n[acme]"), Path::new("c")).unwrap();
    assert_eq!(
        by_acme.tls_files().unwrap().key_file,
        Path::new("/var/lib/tailwharf/certificate.pem")
    );
    let both = format!("{https}\n[acme]\n[tls]\ncert_file = \"a\"\nkey_file = \"b\"");
    assert!(
        Config::parse(&both, Path::new("c"))
            .unwrap_err()
            .to_string()
            .contains("acme")
    );
    assert!(Config::parse(&MINIMAL.replace("http:", "ftp:"), Path::new("c")).is_err());
}

#[test]
fn the_schema_says_what_must_be_there_and_what_holds_without_a_word() {
    let schema = Config::schema().to_value();
    assert_eq!(
        schema["required"],
        serde_json::json!(["server_url", "listen", "data_dir", "magic_dns_suffix"])
    );
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(
        schema["$defs"]["NodeRules"]["properties"]["key_lifetime_days"]["default"],
        180
    );
}
