//! Settings of the pods by the names of the gateway's settings page, and the Secrets they come from.

use std::collections::BTreeMap;

use doorman_crds::DoormanGateway;
use doorman_crds::gateway::{
    ADMIN_PORT, Definitions, LogFormat, LogLevel, Namespaces, SecretKeyRef, StorageMode, stop_seconds,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{GeneratedSecret, NeededKey, Own};

/// Folder the keys are mounted in, one file each.
pub(super) const KEYS: &str = "/etc/doorman/keys";
/// Folder the listener's certificate is mounted in.
pub(super) const TLS: &str = "/etc/doorman/tls";
/// Folder of the last good snapshot.
pub(super) const SNAPSHOTS: &str = "/var/lib/doorman";

const DEFAULT_PORT: i32 = 5001;

/// What the pods are told.
pub(super) struct Settings {
    /// Content of the ConfigMap.
    pub(super) plain: BTreeMap<String, String>,
    /// Files below [`KEYS`].
    pub(super) files: Vec<KeyFile>,
    /// Secrets that are made when absent.
    pub(super) generated: Vec<GeneratedSecret>,
    /// Keys that must exist.
    pub(super) needed: Vec<NeededKey>,
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
    Settings { plain, files: files.used, generated: files.generated, needed: files.needed }
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
    if let Some(redis) = &storage.redis {
        decided.push(("REDIS_HOST", redis.hosts.join(",")));
        decided.extend(redis.db.map(|db| ("REDIS_DB", db.to_string())));
    }
    if let Some(mongo) = &storage.mongo {
        decided.extend(mongo.hosts.as_ref().map(|hosts| ("MONGO_DB_HOSTS", hosts.join(","))));
        decided.extend(mongo.replica_set.clone().map(|name| ("MONGO_REPLICA_SET_NAME", name)));
    }
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
    bytes.into_iter().filter_map(|(name, bytes)| Some((name, bytes?.to_string()))).collect()
}

#[derive(Default)]
struct Keys {
    used: Vec<KeyFile>,
    generated: Vec<GeneratedSecret>,
    needed: Vec<NeededKey>,
}

impl Keys {
    fn take(&mut self, setting: &'static str, field: &'static str, secret: String, key: String) {
        self.needed.push(NeededKey { field, secret: secret.clone(), key: key.clone() });
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

    /// Keys of Redis and MongoDB.
    fn take_stores(&mut self, gateway: &DoormanGateway) {
        let redis = gateway.spec.storage.redis.as_ref();
        if let Some(named) = redis.and_then(|redis| redis.password_secret_ref.as_ref()) {
            let key = named.key.clone().unwrap_or_else(|| "password".to_owned());
            self.take("REDIS_PASSWORD", "spec.storage.redis.passwordSecretRef", named.name.clone(), key);
        }
        let Some(mongo) = &gateway.spec.storage.mongo else { return };
        if let Some(named) = &mongo.uri_secret_ref {
            let key = named.key.clone().unwrap_or_else(|| "uri".to_owned());
            self.take("MONGO_DB_URI", "spec.storage.mongo.uriSecretRef", named.name.clone(), key);
        }
        if let Some(named) = &mongo.credentials_secret_ref {
            let field = "spec.storage.mongo.credentialsSecretRef";
            self.take("MONGO_DB_PASSWORD", field, named.name.clone(), "password".to_owned());
            let (secret, key) = (named.name.clone(), "username".to_owned());
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
    keys.take_or_make(own, "JWT_SECRET_KEY", "spec.keys.jwt", jwt.as_ref(), "jwt");
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
            keys.needed.push(NeededKey { field, secret, key: key.to_owned() });
        }
    }
    if gateway.spec.storage.mode == StorageMode::External {
        keys.take_stores(gateway);
    }
    keys
}
