#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::PathBuf};

use rcgen::{CertifiedKey, generate_simple_self_signed};

use super::{
    table::{Effect, SECTIONS, Variable},
    *,
};

const KEY: &str = "0123456789abcdef0123456789abcdef";

/// The least that `JWT_KEYS` can hold.
const LISTED_KEY: &str = r#"[{"kid":"a","secret":"0123456789abcdef0123456789abcdef","active":true}]"#;

type Pairs<'a> = &'a [(&'a str, &'a str)];

/// What starts in development and memory mode.
const DEVELOPMENT: &[(&str, &str)] =
    &[("JWT_SECRET_KEY", KEY), ("TOKEN_ENCRYPTION_KEY", KEY), ("DOORMAN_ADMIN_PASSWORD", "long-enough-password")];

/// What starts in production with external storage.
const PRODUCTION: &[(&str, &str)] = &[
    ("ENV", "Production"),
    ("HTTPS_ENABLED", "true"),
    ("JWT_SECRET_KEY", KEY),
    ("TOKEN_ENCRYPTION_KEY", KEY),
    ("DOORMAN_ADMIN_PASSWORD", "long-enough-password"),
    ("ALLOWED_ORIGINS", "https://admin.example.com"),
    ("MEM_OR_EXTERNAL", "REDIS"),
    ("REDIS_HOST", "redis.internal"),
    ("REDIS_PASSWORD", "pw"),
    ("MONGO_DB_HOSTS", "mongo1:27017,mongo2:27017"),
];

/// The last one of a name wins; an empty text unsets.
fn load(base: &[(&str, &str)], changes: &[(&str, &str)]) -> Result<(Settings, Vec<Warning>), SettingsErrors> {
    Settings::load(Source::from_pairs(base.iter().chain(changes).copied()))
}

#[track_caller]
fn starts(base: &[(&str, &str)], changes: &[(&str, &str)]) -> Settings {
    load(base, changes).unwrap_or_else(|errors| panic!("{changes:?}: {errors}")).0
}

fn names(findings: &[Finding]) -> BTreeSet<&str> {
    findings.iter().map(|finding| finding.variable.as_str()).collect()
}

#[track_caller]
fn refused(base: &[(&str, &str)], changes: &[(&str, &str)]) -> SettingsErrors {
    load(base, changes).err().unwrap_or_else(|| panic!("{changes:?} starts"))
}

#[track_caller]
fn warned(base: &[(&str, &str)], changes: &[(&str, &str)]) -> (Settings, Vec<Warning>) {
    let (settings, warnings) = load(base, changes).unwrap_or_else(|errors| panic!("{changes:?}: {errors}"));
    (settings, warnings)
}

fn variables() -> impl Iterator<Item = &'static Variable> {
    SECTIONS.iter().flat_map(|section| section.variables)
}

// --- the table and the page ---

#[test]
fn the_docs_page_is_the_table() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/settings.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, render_markdown()).unwrap();
    }
    let page = fs::read_to_string(&path).unwrap_or_default();
    assert!(page == render_markdown(), "run: UPDATE_DOCS=1 cargo test -p doorman-gateway the_docs_page");
}

#[test]
fn every_name_is_in_the_table_once_and_no_secret_file_hides_another_variable() {
    let mut seen = BTreeSet::new();
    for variable in variables() {
        for name in std::iter::once(&variable.name).chain(variable.aliases) {
            assert!(seen.insert(String::from(*name)), "{name} twice");
            assert!(!variable.is_secret || seen.insert(format!("{name}_FILE")), "{name}_FILE twice");
        }
        assert!(variable.meaning.ends_with('.'), "{}: no sentence", variable.name);
    }
}

#[test]
fn every_guard_names_a_variable_of_the_table() {
    let known: BTreeSet<_> = variables().map(|variable| variable.name).collect();
    for guard in guards::GUARDS {
        assert!(known.contains(guard.variable), "{}", guard.variable);
    }
}

#[test]
fn every_default_is_a_value_and_none_is_a_secret() {
    assert!(variables().all(|variable| !variable.is_secret || variable.default.is_empty()));
    // Reads every default; a wrong one panics.
    let settings = starts(DEVELOPMENT, &[]);
    assert_eq!((settings.server.port, settings.server.admin_port, settings.threads()), (5001, 9090, 1));
    assert_eq!(settings.storage.mode, StorageMode::Memory);
    assert_eq!(settings.sessions.access_token_life(), Duration::from_secs(30 * 60));
    assert_eq!(settings.sessions.refresh_token_life(), Duration::from_secs(7 * 86_400));
    assert_eq!(settings.upstream.retry_base_delay, Duration::from_millis(250));
    assert_eq!(settings.network.allowed_origins, Origins::Any);
    assert_eq!(settings.network.allow_headers.0.len(), 5);
    assert_eq!(settings.limits.soap(), ByteCount(1_048_576));
    assert_eq!(settings.definitions.namespaces, ApiNamespaces::Same);
}

// --- reading ---

#[test]
fn booleans_are_read_in_every_spelling() {
    for (text, expected) in [
        ("1", true),
        ("True", true),
        ("YES", true),
        (" on ", true),
        ("0", false),
        ("FALSE", false),
        ("no", false),
        ("Off", false),
    ] {
        assert_eq!(starts(DEVELOPMENT, &[("CORS_STRICT", text)]).network.cors_strict, expected, "{text}");
    }
}

#[test]
fn empty_counts_as_unset() {
    for text in ["", "  "] {
        let settings = starts(DEVELOPMENT, &[("ALLOW_CREDENTIALS", text), ("PORT", text), ("COOKIE_SECURE", text)]);
        assert!(settings.network.allow_credentials && settings.server.port == 5001);
        assert_eq!(settings.sessions.cookie_secure, None);
    }
}

#[test]
fn a_malformed_number_falls_back_to_the_default_with_a_warning() {
    // A Service called `redis` or `doorman-admin` puts such texts into every pod of its namespace.
    for (name, text) in [
        ("PORT", "abc"),
        ("PORT", "70000"),
        ("REDIS_PORT", "tcp://10.0.0.1:6379"),
        ("DOORMAN_ADMIN_PORT", "tcp://10.0.0.1:9090"),
        ("AUTH_EXPIRE_TIME", "0"),
        ("HTTP_READ_TIMEOUT", "0"),
        ("HTTP_READ_TIMEOUT", "-1"),
        ("HTTP_READ_TIMEOUT", "NaN"),
        ("HTTP_READ_TIMEOUT", "1e300"),
        ("MAX_BODY_SIZE_BYTES", "0"),
        ("MAX_BODY_SIZE_BYTES", "1MB"),
        ("THREADS", "0"),
        ("LOG_LEVEL", "LOUD"),
        ("LOG_FORMAT", "xml"),
    ] {
        let (settings, warnings) = warned(DEVELOPMENT, &[(name, text)]);
        assert_eq!(names(&warnings), BTreeSet::from([name]), "{text}");
        assert_eq!((settings.server.port, settings.storage.redis_port, settings.threads()), (5001, 6379, 1));
        assert_eq!(settings.upstream.read_timeout, Duration::from_secs(30));
        assert_eq!(settings.limits.body, ByteCount(1_048_576));
        assert_eq!(settings.sessions.access_token_life(), Duration::from_secs(1800));
    }
}

#[test]
fn a_wrong_text_that_could_open_something_is_refused() {
    for (name, text) in [
        ("HTTPS_ONLY", "ture"),
        ("CORS_STRICT", "2"),
        ("COOKIE_SECURE", "maybe"),
        ("xff_trusted_proxies", "10.0.0.0/33"),
        ("xff_trusted_proxies", "[10.0.1.10"),
        ("ALLOWED_ORIGINS", "app.example.com"),
        ("ALLOWED_ORIGINS", "https://app.example.com/path"),
        ("ALLOWED_ORIGINS", r#"["https://app.example.com", 5]"#),
        ("ALLOW_METHODS", "GET,P(ST"),
        ("ALLOW_HEADERS", "X A"),
        ("CONTENT_SECURITY_POLICY", "default-src 'none'\nX-Evil: 1"),
        ("REDIS_HOST", "redis://redis:6379"),
        ("MONGO_DB_HOSTS", "mongo:port"),
        ("DOORMAN_ADMIN_EMAIL", "admin"),
        ("DOORMAN_APIS_NAMESPACES", "Some"),
        ("DOORMAN_APIS_SELECTOR", "team=a"),
        ("DOORMAN_APIS_SELECTOR", r#"{"matchLables":{"team":"a"}}"#),
        ("DOORMAN_APIS_SELECTOR", r#"{"matchExpressions":[{"key":"a","operator":"In"}]}"#),
        ("DOORMAN_APIS_SELECTOR", r#"{"matchExpressions":[{"key":"a","operator":"Exists","values":["b"]}]}"#),
        ("DOORMAN_APIS_SELECTOR", r#"{"matchExpressions":[{"key":"a","operator":"Like","values":["b"]}]}"#),
    ] {
        assert_eq!(names(&refused(DEVELOPMENT, &[(name, text)]).errors), BTreeSet::from([name]), "{text}");
    }
}

#[test]
fn unknown_words_have_their_documented_stand_in() {
    let (settings, warnings) = warned(
        DEVELOPMENT,
        &[("ENV", "prod"), ("COOKIE_SAMESITE", "any"), ("AUTH_EXPIRE_TIME_FREQ", "moons"), ("LOG_LEVEL", "loud")],
    );
    assert!(!settings.is_production());
    assert_eq!(settings.sessions.cookie_same_site, SameSite::Lax);
    assert_eq!(settings.sessions.access_life_unit, TimeUnit::Minutes);
    assert_eq!(settings.logs.level, LogLevel::Info);
    assert_eq!(names(&warnings), BTreeSet::from(["ENV", "COOKIE_SAMESITE", "AUTH_EXPIRE_TIME_FREQ", "LOG_LEVEL"]));
}

#[test]
fn aliases_are_read_and_the_name_wins() {
    let settings = starts(PRODUCTION, &[("MEM_OR_EXTERNAL", ""), ("MEM_OR_REDIS", "EXTERNAL")]);
    assert_eq!(settings.storage.mode, StorageMode::External);
    let (settings, warnings) = warned(DEVELOPMENT, &[("MEM_OR_EXTERNAL", "MEM"), ("MEM_OR_REDIS", "REDIS")]);
    assert_eq!(settings.storage.mode, StorageMode::Memory);
    assert_eq!(names(&warnings), BTreeSet::from(["MEM_OR_EXTERNAL"]));
    for (trust, proxies) in
        [("trust_x_forwarded_for", "xff_trusted_proxies"), ("TRUST_X_FORWARDED_FOR", "XFF_TRUSTED_PROXIES")]
    {
        let settings = starts(DEVELOPMENT, &[(trust, "true"), (proxies, r#"["10.0.1.10", "fd00::/8"]"#)]);
        assert_eq!(settings.network.trust_forwarded_for, Some(true));
        let proxies: Vec<_> = settings.network.trusted_proxies.iter().map(ToString::to_string).collect();
        assert_eq!(proxies, ["10.0.1.10/32", "fd00::/8"]);
    }
}

#[test]
fn token_lives_take_every_unit() {
    for (count, unit, seconds) in
        [("90", "seconds", 90), ("2", "Hours", 7200), ("1", "d", 86_400), ("1", "week", 604_800), ("5", "", 300)]
    {
        let settings = starts(DEVELOPMENT, &[("AUTH_EXPIRE_TIME", count), ("AUTH_EXPIRE_TIME_FREQ", unit)]);
        assert_eq!(settings.sessions.access_token_life(), Duration::from_secs(seconds), "{count} {unit}");
    }
}

#[test]
fn body_limits_follow_the_global_one_unless_set() {
    let settings = starts(DEVELOPMENT, &[("MAX_BODY_SIZE_BYTES", "100"), ("MAX_BODY_SIZE_BYTES_SOAP", "200")]);
    assert_eq!(settings.limits.rest(), ByteCount(100));
    assert_eq!(settings.limits.soap(), ByteCount(200));
    assert_eq!(settings.limits.graphql(), ByteCount(100));
    assert_eq!(settings.limits.grpc(), ByteCount(100));
}

#[test]
fn redis_is_one_server_a_cluster_or_behind_sentinels() {
    let standalone = |host: &str, port| RedisServers::Standalone(host.to_owned(), port);
    for (hosts, expected) in [
        ("", standalone("localhost", 6380)),
        ("redis", standalone("redis", 6380)),
        ("redis:7000", standalone("redis", 7000)),
        ("[::1]:7000", standalone("::1", 7000)),
        ("fd00::1", standalone("fd00::1", 6380)),
        ("a:1, b,", RedisServers::Cluster(vec![("a".into(), 1), ("b".into(), 6380)])),
    ] {
        let settings = starts(DEVELOPMENT, &[("REDIS_HOST", hosts), ("REDIS_PORT", "6380")]);
        assert_eq!(settings.storage.redis_servers(), expected, "{hosts}");
    }
    let one = starts(DEVELOPMENT, &[("REDIS_HOST", "a"), ("REDIS_CLUSTER", "true")]);
    assert_eq!(one.storage.redis_servers(), RedisServers::Cluster(vec![("a".into(), 6379)]));
    let sentinels = [("REDIS_SENTINEL_HOSTS", "a,b:1"), ("REDIS_SENTINEL_MASTER", "main")];
    let nodes = vec![("a".into(), 26379), ("b".into(), 1)];
    let expected = RedisServers::Sentinel(nodes, "main".into());
    assert_eq!(starts(DEVELOPMENT, &sentinels).storage.redis_servers(), expected);
}

#[test]
fn origins_are_compared_in_lower_case_and_without_a_final_slash() {
    let (settings, warnings) = warned(DEVELOPMENT, &[("ALLOWED_ORIGINS", "https://A.example.com/,http://b:3000")]);
    let expected = Origins::Listed(vec!["https://a.example.com".into(), "http://b:3000".into()]);
    assert_eq!(settings.network.allowed_origins, expected);
    assert_eq!(names(&warnings), BTreeSet::from(["ALLOWED_ORIGINS"]));
}

#[test]
fn label_selectors_are_read() {
    let selector = r#"{"matchLabels":{"team":"a"},"matchExpressions":[{"key":"tier","operator":"Exists"}]}"#;
    let settings =
        starts(DEVELOPMENT, &[("DOORMAN_APIS_NAMESPACES", "selector"), ("DOORMAN_APIS_NAMESPACE_SELECTOR", selector)]);
    let selector = settings.definitions.namespace_selector.unwrap();
    assert_eq!(selector.match_labels.unwrap()["team"], "a");
    assert_eq!(selector.match_expressions.unwrap()[0].key, "tier");
    assert_eq!(settings.definitions.selector, None);
}

#[test]
fn a_variable_without_effect_warns_when_it_is_set_and_never_refuses() {
    for variable in variables().filter(|variable| variable.effect == Effect::NotYet) {
        let (_, warnings) = warned(DEVELOPMENT, &[(variable.name, "]")]);
        assert!(names(&warnings).contains(variable.name), "{}", variable.name);
        let (_, warnings) = warned(DEVELOPMENT, &[(variable.name, variable.default)]);
        assert_eq!(warnings, [], "{} at its default", variable.name);
    }
}

#[cfg(unix)]
#[test]
fn a_text_that_is_not_utf8_is_refused() {
    use std::{ffi::OsString, os::unix::ffi::OsStringExt};
    let pairs = DEVELOPMENT.iter().map(|(name, text)| (*name, OsString::from(text)));
    let source = Source::from_pairs(pairs.chain([("COOKIE_DOMAIN", OsString::from_vec(vec![0xff]))]));
    assert_eq!(names(&Settings::load(source).unwrap_err().errors), BTreeSet::from(["COOKIE_DOMAIN"]));
}

// --- .env files and secret files ---

#[test]
fn an_env_file_fills_only_what_is_unset() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(".env");
    fs::write(&file, "# comment\nPORT=6001\nexport LOG_FORMAT=json\nDOORMAN_ADMIN_EMAIL='a b@example.com'\n").unwrap();
    let source = Source::from_pairs(DEVELOPMENT.iter().copied().chain([("PORT", "7001"), ("LOG_FORMAT", "")]));
    let (settings, _) = Settings::load(source.or_file(&file)).unwrap();
    assert_eq!((settings.server.port, settings.logs.format), (7001, LogFormat::Json));
    assert_eq!(settings.admin.email, "a b@example.com");
}

#[test]
fn a_broken_env_file_is_refused_without_quoting_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(".env");
    fs::write(&file, "PORT=6001\nVAULT_KEY 'hunter2\n").unwrap();
    let errors = Settings::load(Source::from_pairs(DEVELOPMENT.iter().copied()).or_file(&file)).unwrap_err();
    let text = errors.to_string();
    assert!(text.contains(".env the entry after PORT") && !text.contains("hunter2"), "{text}");
}

#[test]
fn every_secret_can_be_a_file_and_no_other_variable_can() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    let path = file.to_str().unwrap();
    for (content, expected) in [("a b \n", "a b "), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a", "a")] {
        fs::write(&file, content).unwrap();
        let settings = starts(DEVELOPMENT, &[("JWT_SECRET_KEY", ""), ("JWT_SECRET_KEY_FILE", path)]);
        assert_eq!(settings.keys.jwt.unwrap().expose(), expected);
    }
    let secrets: BTreeSet<_> = variables().filter(|variable| variable.is_secret).map(|one| one.name).collect();
    let expected = BTreeSet::from([
        "DOORMAN_ADMIN_PASSWORD",
        "JWT_KEYS",
        "JWT_SECRET_KEY",
        "MEM_ENCRYPTION_KEY",
        "MONGO_DB_PASSWORD",
        "MONGO_DB_URI",
        "PROMETHEUS_BEARER_TOKEN",
        "REDIS_PASSWORD",
        "REDIS_SENTINEL_PASSWORD",
        "TOKEN_ENCRYPTION_KEY",
        "TOKEN_ENCRYPTION_KEY_PREVIOUS",
        "VAULT_KEY",
    ]);
    assert_eq!(secrets, expected);
}

#[test]
fn a_secret_given_twice_or_by_an_unusable_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (empty, binary) = (folder.path().join("empty"), folder.path().join("binary"));
    fs::write(&empty, "\n").unwrap();
    fs::write(&binary, [0xff]).unwrap();
    for (inline, file) in [
        (KEY, empty.to_str().unwrap()),
        ("", empty.to_str().unwrap()),
        ("", binary.to_str().unwrap()),
        ("", folder.path().to_str().unwrap()),
        ("", "/nowhere/secret"),
    ] {
        let errors = refused(DEVELOPMENT, &[("JWT_SECRET_KEY", inline), ("JWT_SECRET_KEY_FILE", file)]);
        assert_eq!(names(&errors.errors), BTreeSet::from(["JWT_SECRET_KEY"]));
        assert!(errors.to_string().contains("JWT_SECRET_KEY_FILE"), "{errors}");
        assert_eq!(errors.errors.len(), 1, "{errors}");
    }
}

#[test]
fn secrets_show_nowhere() {
    let all: Vec<_> = variables().filter(|one| one.is_secret).map(|one| (one.name, "Sup3rSecretText")).collect();
    let of_form = [
        ("MONGO_DB_URI", "mongodb://u:Sup3rSecretText@m"),
        (
            "JWT_KEYS",
            r#"[{"kid":"a","secret":"Sup3rSecretText"},{"kid":"b","key":["Sup3rSecretText"]},{"kid":"c","algorithm":"RS256","private_key":"Sup3rSecretText"}]"#,
        ),
    ];
    let (settings, warnings) = warned(DEVELOPMENT, &[&all[..], &of_form].concat());
    let errors = refused(PRODUCTION, &all);
    assert!(names(&errors.errors).contains("JWT_KEYS"), "no JSON");
    for text in [format!("{settings:?}"), format!("{warnings:?}"), format!("{errors} {errors:?}")] {
        assert!(!text.contains("Sup3rSecretText"), "{text}");
    }
    assert_eq!(settings.keys.jwt.unwrap().to_string(), "[redacted]");
}

// --- guards ---

#[test]
fn a_full_production_set_up_starts_without_a_warning() {
    let (settings, warnings) = warned(PRODUCTION, &[]);
    assert_eq!(warnings, []);
    assert!(settings.is_production() && settings.server.enforces_https());
    assert_eq!(settings.threads(), 4);
    assert_eq!(settings.server.tls_files(), None);
}

#[test]
fn each_guard_refuses_alone() {
    let cases: &[(Pairs, Pairs, &str)] = &[
        (PRODUCTION, &[("HTTPS_ENABLED", "")], "HTTPS_ONLY"),
        (DEVELOPMENT, &[("THREADS", "2")], "THREADS"),
        (DEVELOPMENT, &[("DOORMAN_ADMIN_PORT", "5001")], "DOORMAN_ADMIN_PORT"),
        (DEVELOPMENT, &[("JWT_SECRET_KEY", "")], "JWT_SECRET_KEY"),
        (PRODUCTION, &[("JWT_SECRET_KEY", "")], "JWT_SECRET_KEY"),
        (PRODUCTION, &[("JWT_SECRET_KEY", "please-change-me")], "JWT_SECRET_KEY"),
        (PRODUCTION, &[("JWT_SECRET_KEY", &KEY[1..])], "JWT_SECRET_KEY"),
        (DEVELOPMENT, &[("JWT_KEYS", "kid=a")], "JWT_KEYS"),
        (DEVELOPMENT, &[("JWT_KEYS", r#"{"keys":{"kid":"a"}}"#)], "JWT_KEYS"),
        (PRODUCTION, &[("JWT_SECRET_KEY", ""), ("JWT_KEYS", r#"[{"kid":"a","secret":"short"}]"#)], "JWT_KEYS"),
        (PRODUCTION, &[("TOKEN_ENCRYPTION_KEY", "")], "TOKEN_ENCRYPTION_KEY"),
        (PRODUCTION, &[("TOKEN_ENCRYPTION_KEY", &KEY[1..])], "TOKEN_ENCRYPTION_KEY"),
        (PRODUCTION, &[("MEM_OR_EXTERNAL", "MEM")], "MEM_ENCRYPTION_KEY"),
        (PRODUCTION, &[("MEM_OR_EXTERNAL", ""), ("MEM_ENCRYPTION_KEY", &KEY[1..])], "MEM_ENCRYPTION_KEY"),
        (DEVELOPMENT, &[("MEM_ENCRYPTION_KEY", "1234567")], "MEM_ENCRYPTION_KEY"),
        (DEVELOPMENT, &[("DOORMAN_ADMIN_PASSWORD", "")], "DOORMAN_ADMIN_PASSWORD"),
        (PRODUCTION, &[("DOORMAN_ADMIN_PASSWORD", "")], "DOORMAN_ADMIN_PASSWORD"),
        (DEVELOPMENT, &[("DOORMAN_ADMIN_PASSWORD", "11charslong")], "DOORMAN_ADMIN_PASSWORD"),
        (PRODUCTION, &[("REDIS_HOST", "")], "REDIS_HOST"),
        (PRODUCTION, &[("REDIS_HOST", "a,b"), ("REDIS_DB", "1")], "REDIS_DB"),
        (PRODUCTION, &[("REDIS_CLUSTER", "true"), ("REDIS_DB", "1")], "REDIS_DB"),
        (PRODUCTION, &[("REDIS_SENTINEL_HOSTS", "a,b"), ("REDIS_SENTINEL_MASTER", "m")], "REDIS_HOST"),
        (
            PRODUCTION,
            &[
                ("REDIS_HOST", ""),
                ("REDIS_CLUSTER", "1"),
                ("REDIS_SENTINEL_HOSTS", "a"),
                ("REDIS_SENTINEL_MASTER", "m"),
            ],
            "REDIS_CLUSTER",
        ),
        (PRODUCTION, &[("REDIS_USERNAME", "u"), ("REDIS_PASSWORD", "")], "REDIS_USERNAME"),
        (PRODUCTION, &[("REDIS_HOST", ""), ("REDIS_SENTINEL_HOSTS", "a,b")], "REDIS_SENTINEL_MASTER"),
        (PRODUCTION, &[("REDIS_SENTINEL_MASTER", "m")], "REDIS_SENTINEL_HOSTS"),
        (PRODUCTION, &[("REDIS_SENTINEL_PASSWORD", "p")], "REDIS_SENTINEL_HOSTS"),
        (
            PRODUCTION,
            &[
                ("REDIS_HOST", ""),
                ("REDIS_SENTINEL_HOSTS", "a"),
                ("REDIS_SENTINEL_MASTER", "m"),
                ("REDIS_SENTINEL_USERNAME", "u"),
            ],
            "REDIS_SENTINEL_USERNAME",
        ),
        (PRODUCTION, &[("REDIS_TLS", "1"), ("REDIS_TLS_CA_FILE", "/nowhere")], "REDIS_TLS_CA_FILE"),
        (PRODUCTION, &[("REDIS_TLS", "1"), ("REDIS_TLS_CERT_FILE", "/nowhere")], "REDIS_TLS_KEY_FILE"),
        (PRODUCTION, &[("REDIS_TLS", "1"), ("REDIS_TLS_KEY_FILE", "/nowhere")], "REDIS_TLS_CERT_FILE"),
        (PRODUCTION, &[("MONGO_DB_TLS", "1"), ("MONGO_DB_TLS_CA_FILE", "/nowhere")], "MONGO_DB_TLS_CA_FILE"),
        (PRODUCTION, &[("MONGO_DB_MAX_POOL_SIZE", "4")], "MONGO_DB_MIN_POOL_SIZE"),
        (PRODUCTION, &[("MONGO_DB_HOSTS", "")], "MONGO_DB_HOSTS"),
        (DEVELOPMENT, &[("MEM_OR_EXTERNAL", "EXTERNAL")], "MONGO_DB_HOSTS"),
        (PRODUCTION, &[("MONGO_DB_HOSTS", ""), ("MONGO_DB_URI", "http://mongo")], "MONGO_DB_URI"),
        (PRODUCTION, &[("MONGO_DB_USER", "u")], "MONGO_DB_PASSWORD"),
        (PRODUCTION, &[("MONGO_DB_PASSWORD", "p")], "MONGO_DB_USER"),
        (PRODUCTION, &[("trust_x_forwarded_for", "true")], "xff_trusted_proxies"),
        (DEVELOPMENT, &[("DOORMAN_APIS_NAMESPACES", "Selector")], "DOORMAN_APIS_NAMESPACE_SELECTOR"),
        (DEVELOPMENT, &[("SSL_CERTFILE", "/nowhere")], "SSL_KEYFILE"),
        (DEVELOPMENT, &[("SSL_KEYFILE", "/nowhere")], "SSL_CERTFILE"),
    ];
    for (base, changes, expected) in cases {
        let errors = refused(base, changes);
        assert_eq!(names(&errors.errors), BTreeSet::from([*expected]), "{changes:?}");
        assert_eq!(errors.errors.len(), 1, "one reason for {changes:?}: {errors}");
    }
    // A file for a connection that is plain: the file itself is no reason.
    let folder = tempfile::tempdir().unwrap();
    let certificate = folder.path().join("ca.pem");
    fs::write(&certificate, generate_simple_self_signed(["redis".to_owned()]).unwrap().cert.pem()).unwrap();
    for (file, expected) in [("REDIS_TLS_CA_FILE", "REDIS_TLS"), ("MONGO_DB_TLS_CA_FILE", "MONGO_DB_TLS")] {
        let errors = refused(PRODUCTION, &[(file, certificate.to_str().unwrap())]);
        assert_eq!(names(&errors.errors), BTreeSet::from([expected]));
    }
    let mut covered: BTreeSet<_> = cases.iter().map(|(_, _, expected)| *expected).collect();
    covered.extend(["REDIS_TLS", "MONGO_DB_TLS"]);
    let refusing = guards::GUARDS.iter().filter(|guard| guard.severity == guards::Severity::Refuse);
    for guard in refusing.filter(|guard| guard.variable != "DOORMAN_ADMIN_EMAIL") {
        assert!(covered.contains(guard.variable), "no case for {} {}", guard.variable, guard.problem);
    }
}

#[test]
fn each_warning_comes_alone() {
    let cases: &[(Pairs, Pairs, &str)] = &[
        (PRODUCTION, &[("HTTPS_ENABLED", ""), ("HTTPS_ONLY", "true")], "HTTPS_ONLY"),
        (DEVELOPMENT, &[("JWT_SECRET_KEY", "test-secret-key")], "JWT_SECRET_KEY"),
        (DEVELOPMENT, &[("JWT_KEYS", LISTED_KEY)], "JWT_SECRET_KEY"),
        (DEVELOPMENT, &[("DOORMAN_JWT_KEYS_DIR", "/nowhere")], "JWT_SECRET_KEY"),
        (
            DEVELOPMENT,
            &[("JWT_SECRET_KEY", ""), ("DOORMAN_JWT_KEYS_DIR", "/nowhere"), ("JWT_KEYS", LISTED_KEY)],
            "JWT_KEYS",
        ),
        (DEVELOPMENT, &[("JWT_SECRET_KEY", ""), ("JWT_KEYS", r#"[{"kid":"a","secret":"short"}]"#)], "JWT_KEYS"),
        (
            DEVELOPMENT,
            &[
                ("JWT_SECRET_KEY", ""),
                ("JWT_KEYS", r#"[{"kid":"a","secret":"0123456789abcdef0123456789abcdef","active":false}]"#),
            ],
            "JWT_KEYS",
        ),
        (DEVELOPMENT, &[("JWT_KEYS", r#"[{"kid":"a"}]"#)], "JWT_KEYS"),
        (DEVELOPMENT, &[("TOKEN_ENCRYPTION_KEY_PREVIOUS", KEY)], "TOKEN_ENCRYPTION_KEY_PREVIOUS"),
        (DEVELOPMENT, &[("TOKEN_ENCRYPTION_KEY", "")], "TOKEN_ENCRYPTION_KEY"),
        (
            PRODUCTION,
            &[("TOKEN_ENCRYPTION_KEY", ""), ("DOORMAN_TOKEN_ENCRYPTION_KEY_OPTIONAL", "true")],
            "TOKEN_ENCRYPTION_KEY",
        ),
        (PRODUCTION, &[("MEM_OR_EXTERNAL", "MEM"), ("MEM_ENCRYPTION_KEY", KEY)], "MEM_OR_EXTERNAL"),
        (PRODUCTION, &[("MEM_OR_EXTERNAL", "MONGO")], "MEM_OR_EXTERNAL"),
        (PRODUCTION, &[("REDIS_PASSWORD", "")], "REDIS_PASSWORD"),
        (PRODUCTION, &[("MONGO_DB_URI", "mongodb+srv://mongo")], "MONGO_DB_URI"),
        (DEVELOPMENT, &[("trust_x_forwarded_for", "true")], "xff_trusted_proxies"),
        (PRODUCTION, &[("ALLOWED_ORIGINS", "*")], "ALLOWED_ORIGINS"),
        (DEVELOPMENT, &[("COOKIE_DOMAIN", "localhost")], "COOKIE_DOMAIN"),
        (DEVELOPMENT, &[("DOORMAN_APIS_NAMESPACE_SELECTOR", "{}")], "DOORMAN_APIS_NAMESPACE_SELECTOR"),
    ];
    for (base, changes, expected) in cases {
        let (_, warnings) = warned(base, changes);
        assert_eq!(names(&warnings), BTreeSet::from([*expected]), "{changes:?}: {warnings:?}");
        assert_eq!(warnings.len(), 1, "{changes:?}: {warnings:?}");
    }
}

#[test]
fn these_set_ups_start() {
    for (base, changes) in [
        (PRODUCTION, &[("THREADS", "8")][..]),
        (PRODUCTION, &[("MONGO_DB_HOSTS", ""), ("MONGO_DB_URI", "mongodb://mongo")]),
        (PRODUCTION, &[("trust_x_forwarded_for", "true"), ("xff_trusted_proxies", "10.0.1.10")]),
        (PRODUCTION, &[("trust_x_forwarded_for", "true"), ("xff_trusted_proxies", "[10.0.1.10, 10.0.2.0/24]")]),
        (PRODUCTION, &[("MONGO_DB_USER", "u"), ("MONGO_DB_PASSWORD", "p")]),
        (DEVELOPMENT, &[("THREADS", "1")]),
        (DEVELOPMENT, &[("PORT", "0"), ("DOORMAN_ADMIN_PORT", "0")]),
        (DEVELOPMENT, &[("JWT_SECRET_KEY", "short")]),
        (PRODUCTION, &[("JWT_SECRET_KEY", ""), ("JWT_KEYS", LISTED_KEY)]),
        (PRODUCTION, &[("JWT_SECRET_KEY", "short"), ("JWT_KEYS", LISTED_KEY)]),
        (PRODUCTION, &[("JWT_SECRET_KEY", ""), ("DOORMAN_JWT_KEYS_DIR", "/etc/doorman/jwt")]),
        (PRODUCTION, &[("REDIS_TLS", "true"), ("MONGO_DB_TLS", "true")]),
        (PRODUCTION, &[("REDIS_HOST", ""), ("REDIS_SENTINEL_HOSTS", "a,b"), ("REDIS_SENTINEL_MASTER", "m")]),
        (DEVELOPMENT, &[("MEM_OR_EXTERNAL", "REDIS"), ("MONGO_DB_HOSTS", "mongo")]),
    ] {
        starts(base, changes);
    }
}

#[test]
fn an_entry_of_the_token_keys_that_is_of_no_use_is_named_and_left_out() {
    let entries = r#"[{"kid":"a","secret":"0123456789abcdef0123456789abcdef"},{"secret":"x"},{"kid":"b"},{"kid":"c","algorithm":"HS512","secret":"x"},
        {"kid":"d","active":"yes","secret":"x"},{"kid":"e","algorithm":"RS256","private_key_path":"/nowhere/key.pem"},
        {"kid":"f","algorithm":"RS256"},{"kid":"a","secret":"y"},7,{"kid":"g","algorithm":"RS256","public_key":"-----BEGIN PUBLIC KEY-----"}]"#;
    let (settings, warnings) = warned(DEVELOPMENT, &[("JWT_SECRET_KEY", ""), ("JWT_KEYS", entries)]);
    let kids: Vec<_> = settings.keys.jwt_keys.0.iter().map(|named| named.kid.as_str()).collect();
    assert_eq!(kids, ["a"]);
    let text = warnings[0].to_string();
    for part in [
        "entry 2 has no `kid`",
        "\"b\" has neither `secret` nor `key`",
        "\"c\" has an `algorithm`",
        "\"d\" has an `active`",
        "\"e\" names the file /nowhere/key.pem",
        "\"f\" has neither `private_key`",
        "\"a\" is there twice",
        "entry 9 is not an object",
        "\"g\" is not an RSA key",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn token_keys_of_which_none_is_of_use_are_the_reason_not_to_start() {
    let errors = refused(DEVELOPMENT, &[("JWT_SECRET_KEY", ""), ("JWT_KEYS", r#"[{"kid":"a"}]"#)]);
    assert_eq!(names(&errors.errors), BTreeSet::from(["JWT_SECRET_KEY", "JWT_KEYS"]));
    assert!(errors.to_string().contains("\"a\" has neither"), "{errors}");
}

#[test]
fn token_keys_can_be_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    fs::write(&file, format!("{LISTED_KEY}\n")).unwrap();
    let settings = starts(DEVELOPMENT, &[("JWT_SECRET_KEY", ""), ("JWT_KEYS_FILE", file.to_str().unwrap())]);
    assert_eq!(settings.keys.jwt_keys.0[0].kid, "a");
}

#[test]
fn stored_keys_are_read_with_every_key_that_was_set_before() {
    let phrase = "an earlier key of a decent length.....";
    let sealer = |changes: Pairs| starts(DEVELOPMENT, changes).keys.sealer().unwrap();
    let by_memory = sealer(&[("TOKEN_ENCRYPTION_KEY", ""), ("MEM_ENCRYPTION_KEY", phrase)]).seal("sk").unwrap();
    let by_token = sealer(&[("TOKEN_ENCRYPTION_KEY", phrase)]).seal("sk").unwrap();
    assert_eq!(sealer(&[("MEM_ENCRYPTION_KEY", phrase)]).open(&by_memory).unwrap(), "sk");
    assert_eq!(sealer(&[("TOKEN_ENCRYPTION_KEY_PREVIOUS", phrase)]).open(&by_token).unwrap(), "sk");
    assert!(sealer(&[]).open(&by_token).is_err());
    assert_eq!(sealer(&[("TOKEN_ENCRYPTION_KEY", "")]).seal("sk").unwrap(), "sk");
}

#[test]
fn paths_may_be_exempt_from_the_body_limit() {
    let settings = starts(DEVELOPMENT, &[("BODY_LIMIT_EXCLUDE_PATHS", "/platform/proto/*, /api/rest/files/v1/up")]);
    let limit = |path| settings.limits.of_path(path, settings.limits.body);
    for exempt in ["/platform/proto/", "/platform/proto/a/v1", "/api/rest/files/v1/up"] {
        assert_eq!(limit(exempt), u64::MAX, "{exempt}");
    }
    for limited in ["/platform/proto", "/api/rest/files/v1/up/x", "/api/rest/files/v1/%75p", ""] {
        assert_eq!(limit(limited), 1_048_576, "{limited}");
    }
    let settings = starts(DEVELOPMENT, &[("DISABLE_BODY_SIZE_LIMIT", "true")]);
    assert_eq!(settings.limits.of_path("/", settings.limits.rest()), u64::MAX);
}

#[test]
fn all_reasons_are_reported_at_once_one_to_a_line() {
    let errors = refused(&[], &[("ENV", "production"), ("THREADS", "4"), ("CORS_STRICT", "ture")]);
    let expected = [
        "CORS_STRICT",
        "DOORMAN_ADMIN_PASSWORD",
        "HTTPS_ONLY",
        "JWT_SECRET_KEY",
        "MEM_ENCRYPTION_KEY",
        "THREADS",
        "TOKEN_ENCRYPTION_KEY",
    ];
    assert_eq!(names(&errors.errors), BTreeSet::from(expected));
    let text = errors.to_string();
    assert_eq!(text.lines().count(), 1 + expected.len(), "{text}");
    assert!(text.contains("\n  JWT_SECRET_KEY is not set; set a random text of at least 32 characters"), "{text}");
}

// --- certificate files ---

#[test]
fn certificate_files_are_checked_wherever_they_are_given() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let pair = || generate_simple_self_signed(["gateway.test".to_owned()]).unwrap();
    let (CertifiedKey { cert, signing_key }, other) = (pair(), pair().signing_key);
    let certificate = file("cert.pem", &cert.pem());
    let key = file("key.pem", &signing_key.serialize_pem());
    let other = file("other.pem", &other.serialize_pem());
    let garbage = file("garbage.pem", "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n");
    let empty = file("empty.pem", "");

    let settings = starts(DEVELOPMENT, &[("HTTPS_ONLY", "1"), ("SSL_CERTFILE", &certificate), ("SSL_KEYFILE", &key)]);
    let expected = TlsFiles { certificate: certificate.as_ref(), key: key.as_ref() };
    assert_eq!(settings.server.tls_files(), Some(expected));

    let (settings, warnings) = warned(DEVELOPMENT, &[("SSL_CERTFILE", &certificate), ("SSL_KEYFILE", &key)]);
    assert_eq!(settings.server.tls_files(), None);
    assert_eq!(names(&warnings), BTreeSet::from(["SSL_CERTFILE"]));

    for (certificate, key, expected) in [
        (certificate.as_str(), other.as_str(), &["SSL_KEYFILE"][..]),
        (&certificate, "/nowhere/key.pem", &["SSL_KEYFILE"]),
        (&certificate, &certificate, &["SSL_KEYFILE"]),
        (&garbage, &key, &["SSL_CERTFILE"]),
        (&empty, &key, &["SSL_CERTFILE"]),
        (&key, &key, &["SSL_CERTFILE"]),
        ("/nowhere/cert.pem", "/nowhere/key.pem", &["SSL_CERTFILE", "SSL_KEYFILE"]),
    ] {
        for https_only in ["true", "false"] {
            let changes = [("HTTPS_ONLY", https_only), ("SSL_CERTFILE", certificate), ("SSL_KEYFILE", key)];
            let errors = refused(DEVELOPMENT, &changes);
            assert_eq!(names(&errors.errors), expected.iter().copied().collect(), "{changes:?}");
        }
    }
}
