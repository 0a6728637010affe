//! Settings of the pods by the names of the gateway's settings page, and the Secrets they come from.

use std::collections::BTreeMap;

use doorman_crds::DoormanGateway;
use doorman_crds::gateway::{
    ADMIN_PORT, Definitions, FailMode, LogFormat, LogLevel, MongoSpec, Namespaces, RedisMode, RedisSpec, SecretKeyRef,
    StorageMode, stop_seconds,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{GeneratedSecret, NeededKey, Own};

/// Folder the keys are mounted in, one file each.
pub(super) const KEYS: &str = "/etc/doorman/keys";
/// Folder the keys of tokens are mounted in, one file each: the gateway follows it.
pub(super) const TOKEN_KEYS: &str = "/etc/doorman/jwt";
/// Folder the listener's certificate is mounted in.
pub(super) const TLS: &str = "/etc/doorman/tls";
/// Folder of the last good snapshot.
pub(super) const SNAPSHOTS: &str = "/var/lib/doorman";

/// The one key of a Secret that was made here.
pub(super) const JWT_SECRET_KEY: &str = "JWT_SECRET_KEY";

const DEFAULT_PORT: i32 = 5001;
/// What the gateway takes for `MONGO_DB_MIN_POOL_SIZE` when nothing is said.
const LEAST_POOL: i32 = 5;

/// What the pods are told.
pub(super) struct Settings {
    /// Content of the ConfigMap.
    pub(super) plain: BTreeMap<String, String>,
    /// Files below [`KEYS`].
    pub(super) files: Vec<KeyFile>,
    /// Where [`TOKEN_KEYS`] comes from.
    pub(super) token_keys: TokenKeys,
    /// Secrets that are made when absent.
    pub(super) generated: Vec<GeneratedSecret>,
    /// Keys that must exist.
    pub(super) needed: Vec<NeededKey>,
}

/// The Secret that holds the keys of tokens.
#[derive(Default)]
pub(super) struct TokenKeys {
    pub(super) secret: String,
    /// The one of its keys that is used; `None`: all are.
    pub(super) only: Option<String>,
}

/// One key of a Secret as a file named after its setting.
pub(super) struct KeyFile {
    pub(super) setting: &'static str,
    pub(super) secret: String,
    pub(super) key: String,
}

pub(super) fn is_tls(gateway: &DoormanGateway) -> bool {
    gateway.spec.listeners.as_ref().is_some_and(|listeners| listeners.tls.is_some())
}

pub(super) fn traffic_port(gateway: &DoormanGateway) -> i32 {
    gateway.spec.listeners.as_ref().and_then(|listeners| listeners.port).unwrap_or(DEFAULT_PORT)
}

pub(super) fn of(gateway: &DoormanGateway, own: &Own) -> Settings {
    let mut plain = BTreeMap::from([("LOG_FORMAT".to_owned(), "json".to_owned())]);
    let (drain, shutdown) = stop_seconds(&gateway.spec);
    plain.insert("DOORMAN_DRAIN_SECONDS".to_owned(), drain.to_string());
    plain.insert("DOORMAN_SHUTDOWN_SECONDS".to_owned(), shutdown.to_string());
    plain.extend(gateway.spec.settings.clone().unwrap_or_default());

    let mut decided = Vec::new();
    decided.extend(identity(gateway, own));
    decided.extend(listeners(gateway));
    decided.extend(storage(gateway));
    decided.extend(platform(gateway));
    decided.extend(limits(gateway));
    let files = keys(gateway, own);
    plain.extend(decided.into_iter().map(|(name, value)| (name.to_owned(), value)));
    plain.extend(files.used.iter().map(|file| (format!("{}_FILE", file.setting), format!("{KEYS}/{}", file.setting))));
    plain.insert("DOORMAN_JWT_KEYS_DIR".to_owned(), TOKEN_KEYS.to_owned());
    let Keys { used: files, of_tokens: token_keys, generated, needed } = files;
    Settings { plain, files, token_keys, generated, needed }
}

type Decided = Vec<(&'static str, String)>;

fn identity(gateway: &DoormanGateway, own: &Own) -> Decided {
    let apis = gateway.spec.apis.clone().unwrap_or_default();
    let namespaces = match apis.namespaces.unwrap_or_default() {
        Namespaces::Same => "Same",
        Namespaces::All => "All",
        Namespaces::Selector => "Selector",
    };
    // Absent labels select nothing in particular: everything.
    let json =
        |selector: Option<LabelSelector>| serde_json::to_string(&selector.unwrap_or_default()).unwrap_or_default();
    let mut decided = vec![
        ("DOORMAN_GATEWAY_NAME", own.gateway.clone()),
        ("DOORMAN_GATEWAY_NAMESPACE", own.namespace.clone()),
        ("DOORMAN_APIS_NAMESPACES", namespaces.to_owned()),
        ("DOORMAN_SNAPSHOT_DIR", SNAPSHOTS.to_owned()),
        ("DOORMAN_ADMIN_PORT", ADMIN_PORT.to_string()),
        // A pod is one process; more of them are more pods.
        ("THREADS", "1".to_owned()),
    ];
    if apis.namespaces == Some(Namespaces::Selector) {
        decided.push(("DOORMAN_APIS_NAMESPACE_SELECTOR", json(apis.namespace_selector)));
    }
    if apis.selector.is_some() {
        decided.push(("DOORMAN_APIS_SELECTOR", json(apis.selector)));
    }
    let email = gateway.spec.admin.as_ref().and_then(|admin| admin.email.clone());
    decided.extend(email.map(|email| ("DOORMAN_ADMIN_EMAIL", email)));
    let logs = gateway.spec.observability.as_ref();
    decided.extend(logs.and_then(|logs| logs.log_format).map(|format| {
        let word = match format {
            LogFormat::Json => "json",
            LogFormat::Plain => "plain",
        };
        ("LOG_FORMAT", word.to_owned())
    }));
    let level = logs.and_then(|logs| logs.log_level);
    decided.extend(level.map(|level: LogLevel| ("LOG_LEVEL", level.as_str().to_owned())));
    decided
}

/// Production is where clients come by HTTPS: its guards allow nothing else.
fn listeners(gateway: &DoormanGateway) -> Decided {
    let is_behind_proxy = gateway.spec.listeners.as_ref().and_then(|listeners| listeners.behind_proxy) == Some(true);
    let is_tls = is_tls(gateway);
    let environment = if is_tls || is_behind_proxy { "production" } else { "development" };
    let mut decided = vec![
        ("PORT", traffic_port(gateway).to_string()),
        ("ENV", environment.to_owned()),
        ("HTTPS_ONLY", is_tls.to_string()),
        ("HTTPS_ENABLED", is_behind_proxy.to_string()),
    ];
    if is_tls {
        decided.push(("SSL_CERTFILE", format!("{TLS}/tls.crt")));
        decided.push(("SSL_KEYFILE", format!("{TLS}/tls.key")));
    }
    decided
}

fn storage(gateway: &DoormanGateway) -> Decided {
    let storage = &gateway.spec.storage;
    let mode = match storage.mode {
        StorageMode::Memory => "MEM",
        StorageMode::External => "REDIS",
    };
    let mut decided = vec![("MEM_OR_EXTERNAL", mode.to_owned())];
    if storage.mode == StorageMode::Memory {
        return decided;
    }
    decided.extend(storage.redis.as_ref().map(redis).unwrap_or_default());
    decided.extend(storage.mongo.as_ref().map(mongo).unwrap_or_default());
    decided
}

fn redis(redis: &RedisSpec) -> Decided {
    let hosts = redis.hosts.join(",");
    let mut decided = match redis.mode {
        RedisMode::Standalone => vec![("REDIS_HOST", hosts)],
        RedisMode::Cluster => vec![("REDIS_HOST", hosts), ("REDIS_CLUSTER", "true".to_owned())],
        RedisMode::Sentinel => vec![("REDIS_SENTINEL_HOSTS", hosts)],
    };
    decided.extend(redis.master_name.clone().map(|name| ("REDIS_SENTINEL_MASTER", name)));
    decided.extend(redis.sentinel_username.clone().map(|name| ("REDIS_SENTINEL_USERNAME", name)));
    decided.extend(redis.username.clone().map(|name| ("REDIS_USERNAME", name)));
    decided.extend(redis.db.map(|db| ("REDIS_DB", db.to_string())));
    decided.extend(redis.tls.map(|tls| ("REDIS_TLS", tls.to_string())));
    decided
}

fn mongo(mongo: &MongoSpec) -> Decided {
    let mut decided = Vec::new();
    decided.extend(mongo.hosts.as_ref().map(|hosts| ("MONGO_DB_HOSTS", hosts.join(","))));
    decided.extend(mongo.replica_set.clone().map(|name| ("MONGO_REPLICA_SET_NAME", name)));
    decided.extend(mongo.auth_source.clone().map(|name| ("MONGO_DB_AUTH_SOURCE", name)));
    decided.extend(mongo.tls.map(|tls| ("MONGO_DB_TLS", tls.to_string())));
    decided.extend(mongo.max_pool_size.map(|size| ("MONGO_DB_MAX_POOL_SIZE", size.to_string())));
    // The gateway's own least may be more than the most that is wanted here.
    let least = mongo.min_pool_size.or_else(|| mongo.max_pool_size.filter(|most| *most < LEAST_POOL));
    decided.extend(least.map(|size| ("MONGO_DB_MIN_POOL_SIZE", size.to_string())));
    decided
}

fn platform(gateway: &DoormanGateway) -> Decided {
    let platform = gateway.spec.platform.clone().unwrap_or_default();
    let cors = platform.cors.unwrap_or_default();
    let origins = cors.allow_origins.map(|origins| ("ALLOWED_ORIGINS", origins.join(",")));
    let strict = cors.strict.map(|strict| ("CORS_STRICT", strict.to_string()));
    let credentials = cors.allow_credentials.map(|allow| ("ALLOW_CREDENTIALS", allow.to_string()));
    let domain = platform.cookie_domain.map(|domain| ("COOKIE_DOMAIN", domain));
    let definitions = platform.definitions.map(|definitions| {
        let word = match definitions {
            Definitions::ReadWrite => "ReadWrite",
            Definitions::ReadOnly => "ReadOnly",
        };
        ("DOORMAN_PLATFORM_DEFINITIONS", word.to_owned())
    });
    [origins, strict, credentials, domain, definitions].into_iter().flatten().collect()
}

fn limits(gateway: &DoormanGateway) -> Decided {
    let limits = gateway.spec.limits.clone().unwrap_or_default();
    let bytes = [
        ("MAX_BODY_SIZE_BYTES", limits.max_body_bytes),
        ("MAX_BODY_SIZE_BYTES_REST", limits.max_body_bytes_rest),
        ("MAX_BODY_SIZE_BYTES_SOAP", limits.max_body_bytes_soap),
        ("MAX_BODY_SIZE_BYTES_GRAPHQL", limits.max_body_bytes_graphql),
        ("MAX_BODY_SIZE_BYTES_GRPC", limits.max_body_bytes_grpc),
        ("MAX_MULTIPART_SIZE_BYTES", limits.max_multipart_bytes),
    ];
    let fail_mode = limits.fail_mode.map(|mode| match mode {
        FailMode::Open => "Open",
        FailMode::Closed => "Closed",
    });
    let fail_mode = fail_mode.map(|word| ("DOORMAN_LIMITS_FAIL_MODE", word.to_owned()));
    bytes.into_iter().filter_map(|(name, bytes)| Some((name, bytes?.to_string()))).chain(fail_mode).collect()
}

#[derive(Default)]
struct Keys {
    used: Vec<KeyFile>,
    of_tokens: TokenKeys,
    generated: Vec<GeneratedSecret>,
    needed: Vec<NeededKey>,
}

impl Keys {
    fn take(&mut self, setting: &'static str, field: &'static str, secret: String, key: String) {
        self.needed.push(NeededKey { field, secret: secret.clone(), key: Some(key.clone()) });
        self.used.push(KeyFile { setting, secret, key });
    }

    /// From the Secret the spec names, or from one made for this gateway.
    fn take_or_make(
        &mut self,
        own: &Own,
        setting: &'static str,
        field: &'static str,
        named: Option<&SecretKeyRef>,
        suffix: &str,
    ) {
        let key = named.and_then(|named| named.key.clone()).unwrap_or_else(|| setting.to_owned());
        let secret = named.map_or_else(|| format!("{}-{suffix}", own.name), |named| named.name.clone());
        if named.is_none() {
            self.generated.push(GeneratedSecret { metadata: own.meta_named(secret.clone()), key: key.clone() });
        }
        self.take(setting, field, secret, key);
    }

    /// All keys of the Secret the spec names, so that one can take over from another without a restart; only one of them
    /// when the spec names it, or when the Secret is there for something else too.
    fn take_token_keys(&mut self, own: &Own, named: Option<SecretKeyRef>) {
        let default = || JWT_SECRET_KEY.to_owned();
        let (secret, only) = match named {
            Some(SecretKeyRef { name, key: Some(key) }) => (name, Some(key)),
            Some(SecretKeyRef { name, key: None }) => {
                let is_shared = self.needed.iter().any(|other| other.secret == name);
                (name, is_shared.then(default))
            }
            None => {
                let secret = format!("{}-jwt", own.name);
                self.generated.push(GeneratedSecret { metadata: own.meta_named(secret.clone()), key: default() });
                (secret, None)
            }
        };
        self.needed.push(NeededKey { field: "spec.keys.jwt", secret: secret.clone(), key: only.clone() });
        self.of_tokens = TokenKeys { secret, only };
    }

    /// From the key of a Secret the spec may name.
    fn take_named(
        &mut self,
        setting: &'static str,
        field: &'static str,
        named: Option<&SecretKeyRef>,
        usual_key: &str,
    ) {
        if let Some(named) = named {
            let key = named.key.clone().unwrap_or_else(|| usual_key.to_owned());
            self.take(setting, field, named.name.clone(), key);
        }
    }

    /// Keys and certificates of Redis and MongoDB. A setting that is the path of a file is called by its name without
    /// `_FILE`, as those are that may be given as one.
    fn take_stores(&mut self, gateway: &DoormanGateway) {
        if let Some(redis) = &gateway.spec.storage.redis {
            let (password, sentinels) =
                (redis.password_secret_ref.as_ref(), redis.sentinel_password_secret_ref.as_ref());
            self.take_named("REDIS_PASSWORD", "spec.storage.redis.passwordSecretRef", password, "password");
            let field = "spec.storage.redis.sentinelPasswordSecretRef";
            self.take_named("REDIS_SENTINEL_PASSWORD", field, sentinels, "password");
            let authorities = redis.ca_secret_ref.as_ref();
            self.take_named("REDIS_TLS_CA", "spec.storage.redis.caSecretRef", authorities, "ca.crt");
            if let Some(named) = &redis.client_certificate_secret_ref {
                let field = "spec.storage.redis.clientCertificateSecretRef";
                self.take("REDIS_TLS_CERT", field, named.name.clone(), "tls.crt".to_owned());
                self.take("REDIS_TLS_KEY", field, named.name.clone(), "tls.key".to_owned());
            }
        }
        let Some(mongo) = &gateway.spec.storage.mongo else { return };
        self.take_named("MONGO_DB_URI", "spec.storage.mongo.uriSecretRef", mongo.uri_secret_ref.as_ref(), "uri");
        let authorities = mongo.ca_secret_ref.as_ref();
        self.take_named("MONGO_DB_TLS_CA", "spec.storage.mongo.caSecretRef", authorities, "ca.crt");
        let (field, client) =
            ("spec.storage.mongo.clientCertificateSecretRef", mongo.client_certificate_secret_ref.as_ref());
        self.take_named("MONGO_DB_TLS_CERT_KEY", field, client, "tls-combined.pem");
        if let Some(named) = &mongo.credentials_secret_ref {
            let field = "spec.storage.mongo.credentialsSecretRef";
            self.take("MONGO_DB_PASSWORD", field, named.name.clone(), "password".to_owned());
            let (secret, key) = (named.name.clone(), Some("username".to_owned()));
            self.needed.push(NeededKey { field, secret, key });
        }
    }
}

fn keys(gateway: &DoormanGateway, own: &Own) -> Keys {
    let mut keys = Keys::default();
    let spec = gateway.spec.keys.clone().unwrap_or_default();
    let jwt = spec.jwt.map(|source| source.secret_ref);
    let token = spec.token_encryption.map(|source| source.secret_ref);
    let memory = spec.memory_encryption.map(|source| source.secret_ref);
    let password = gateway.spec.admin.as_ref().and_then(|admin| admin.password_secret_ref.as_ref());
    keys.take_or_make(own, "TOKEN_ENCRYPTION_KEY", "spec.keys.tokenEncryption", token.as_ref(), "token-encryption");
    if memory.is_some() || gateway.spec.storage.mode == StorageMode::Memory {
        keys.take_or_make(
            own,
            "MEM_ENCRYPTION_KEY",
            "spec.keys.memoryEncryption",
            memory.as_ref(),
            "memory-encryption",
        );
    }
    keys.take_or_make(own, "DOORMAN_ADMIN_PASSWORD", "spec.admin.passwordSecretRef", password, "admin");
    if let Some(tls) = gateway.spec.listeners.as_ref().and_then(|listeners| listeners.tls.as_ref()) {
        for key in ["tls.crt", "tls.key"] {
            let (field, secret) = ("spec.listeners.tls.secretRef", tls.secret_ref.name.clone());
            keys.needed.push(NeededKey { field, secret, key: Some(key.to_owned()) });
        }
    }
    if gateway.spec.storage.mode == StorageMode::External {
        keys.take_stores(gateway);
    }
    keys.take_token_keys(own, jwt);
    keys
}
