//! What start-up refuses, and what it only warns of.
//!
//! Every guard looks at the whole tree, so that all reasons are reported at once. The docs page lists the same table.

use std::path::Path;

use rustls::{
    InconsistentKeys,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

use super::{
    Finding, Settings,
    value::{ApiNamespaces, Origins, Secret},
};

/// What a violated guard does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    Refuse,
    Warn,
}
use Severity::{Refuse, Warn};

/// A condition no start, or no quiet start, is made in.
pub(super) struct Guard {
    pub(super) severity: Severity,
    pub(super) variable: &'static str,
    /// Reads on from the variable's name.
    pub(super) problem: &'static str,
    pub(super) remedy: &'static str,
    violated: fn(&Settings) -> bool,
}

/// Keys that were printed in examples; anyone can sign tokens with them.
const PUBLISHED_JWT_KEYS: [&str; 3] = ["please-change-me", "test-secret-key", "test-secret-key-please-change"];

/// A key shorter than this can be guessed.
const KEY_CHARS: usize = 32;

fn shorter_than(chars: usize, secret: Option<&Secret>) -> bool {
    secret.is_none_or(|secret| secret.chars() < chars)
}

/// The key of tokens, when it is the only one.
fn jwt_secret(settings: &Settings) -> Option<&Secret> {
    settings.keys.jwt.as_ref().filter(|_| settings.keys.has_only_the_secret_key())
}

fn has_short_jwt_secret(settings: &Settings) -> bool {
    settings.keys.has_only_the_secret_key() && shorter_than(KEY_CHARS, jwt_secret(settings))
}

fn has_weak_jwt_key(settings: &Settings) -> bool {
    settings.keys.jwt_folder.is_none() && settings.keys.jwt_keys.0.iter().any(|named| named.key.is_weak())
}

fn has_published_jwt_key(settings: &Settings) -> bool {
    jwt_secret(settings).is_some_and(|key| PUBLISHED_JWT_KEYS.contains(&key.expose()))
}

fn lacks_token_key(settings: &Settings) -> bool {
    shorter_than(KEY_CHARS, settings.keys.token_encryption.as_ref())
}

fn token_key_is_demanded(settings: &Settings) -> bool {
    settings.is_production() && !settings.keys.token_encryption_is_optional
}

fn trusts_any_proxy(settings: &Settings) -> bool {
    settings.network.trust_forwarded_for == Some(true) && settings.network.trusted_proxies.is_empty()
}

macro_rules! guards {
    ($( $severity:ident $variable:literal, $problem:literal, $remedy:literal, $violated:expr; )*) => {
        /// In the order they are reported; of one variable, only the first refusal is.
        pub(super) const GUARDS: &[Guard] = &[$(
            Guard { severity: $severity, variable: $variable, problem: $problem, remedy: $remedy, violated: $violated },
        )*];
    };
}

guards! {
    Refuse "HTTPS_ONLY", "is off in production, and so is HTTPS_ENABLED",
        "set HTTPS_ONLY=true to terminate TLS here, or HTTPS_ENABLED=true behind a proxy that does",
        |s| s.is_production() && !s.server.enforces_https();
    Refuse "SSL_CERTFILE", "is unset while SSL_KEYFILE is set", "set both or neither",
        |s| s.server.key_file.is_some() && s.server.certificate_file.is_none();
    Refuse "SSL_KEYFILE", "is unset while SSL_CERTFILE is set", "set both or neither",
        |s| s.server.certificate_file.is_some() && s.server.key_file.is_none();
    Warn "HTTPS_ONLY", "is on without SSL_CERTFILE and SSL_KEYFILE: the listener is plain",
        "set both files, or use HTTPS_ENABLED behind a proxy",
        |s| s.server.https_only && s.server.certificate_file.is_none() && s.server.key_file.is_none();
    Warn "SSL_CERTFILE", "is set but not used: HTTPS_ONLY is off and the listener is plain",
        "set HTTPS_ONLY=true to terminate TLS here",
        |s| s.server.certificate_file.is_some() && !s.server.https_only;
    Refuse "DOORMAN_ADMIN_PORT", "is the same as PORT", "choose another port",
        |s| s.server.admin_port != 0 && s.server.admin_port == s.server.port;
    Refuse "THREADS", "is not 1 in memory mode, which is one process by definition",
        "set THREADS=1 or leave it unset, or use MEM_OR_EXTERNAL=REDIS",
        |s| s.storage.is_memory() && s.server.threads.is_some_and(|threads| threads.get() != 1);

    Refuse "JWT_SECRET_KEY", "is not set", "set a random text of at least 32 characters",
        |s| s.keys.jwt.is_none() && s.keys.has_only_the_secret_key();
    Refuse "JWT_SECRET_KEY", "is a published default in production", "set a random text of at least 32 characters",
        |s| s.is_production() && has_published_jwt_key(s);
    Refuse "JWT_SECRET_KEY", "is shorter than 32 characters in production",
        "set a random text of at least 32 characters",
        |s| s.is_production() && has_short_jwt_secret(s);
    Warn "JWT_SECRET_KEY", "is a published default or shorter than 32 characters; production would not start",
        "set a random text of at least 32 characters",
        |s| !s.is_production() && (has_published_jwt_key(s) || has_short_jwt_secret(s));
    Warn "JWT_SECRET_KEY", "is set but not used: tokens have the keys of JWT_KEYS or DOORMAN_JWT_KEYS_DIR",
        "remove it, or list it there with the kid `legacy-key` to keep its tokens valid",
        |s| s.keys.jwt.is_some() && !s.keys.has_only_the_secret_key();
    Warn "JWT_KEYS", "is set but not used: DOORMAN_JWT_KEYS_DIR is", "keep one of the two",
        |s| s.keys.jwt_folder.is_some() && !s.keys.jwt_keys.0.is_empty();
    Refuse "JWT_KEYS", "has a secret shorter than 32 characters in production",
        "use random texts of at least 32 characters",
        |s| s.is_production() && has_weak_jwt_key(s);
    Warn "JWT_KEYS", "has a secret shorter than 32 characters; production would not start",
        "use random texts of at least 32 characters",
        |s| !s.is_production() && has_weak_jwt_key(s);
    Warn "JWT_KEYS", "has no active key that can sign: nobody can sign in here",
        "add an active key with a secret or a private key",
        |s| s.keys.jwt_folder.is_none() && !s.keys.jwt_keys.0.is_empty()
            && !s.keys.jwt_keys.0.iter().any(|named| named.active && named.key.can_sign());
    Warn "TOKEN_ENCRYPTION_KEY_PREVIOUS", "is the same as TOKEN_ENCRYPTION_KEY", "remove it",
        |s| s.keys.token_encryption_previous.as_ref().is_some_and(|previous| {
            s.keys.token_encryption.as_ref().is_some_and(|current| current.expose() == previous.expose())
        });
    Refuse "TOKEN_ENCRYPTION_KEY", "is unset or shorter than 32 characters in production",
        "set a random text of at least 32 characters, or waive it with DOORMAN_TOKEN_ENCRYPTION_KEY_OPTIONAL=true",
        |s| token_key_is_demanded(s) && lacks_token_key(s);
    Warn "TOKEN_ENCRYPTION_KEY", "is unset or shorter than 32 characters: stored upstream keys are poorly protected",
        "set a random text of at least 32 characters",
        |s| !token_key_is_demanded(s) && lacks_token_key(s);
    Refuse "MEM_ENCRYPTION_KEY", "is unset or shorter than 32 characters in production memory mode",
        "set a random text of at least 32 characters",
        |s| s.is_production() && s.storage.is_memory() && shorter_than(KEY_CHARS, s.keys.memory_encryption.as_ref());
    Refuse "MEM_ENCRYPTION_KEY", "is shorter than 8 characters", "set a random text of at least 32 characters",
        |s| s.keys.memory_encryption.as_ref().is_some_and(|key| key.chars() < 8);
    Refuse "DOORMAN_ADMIN_PASSWORD", "is not set", "set the first administrator's password, 12 or more characters",
        |s| s.admin.password.is_none();
    Refuse "DOORMAN_ADMIN_PASSWORD", "is shorter than 12 characters", "set a longer password",
        |s| shorter_than(12, s.admin.password.as_ref());
    Refuse "DOORMAN_ADMIN_EMAIL", "is not an e-mail address", "set an address such as admin@example.com",
        |s| s.admin.email.split_once('@').is_none_or(|(user, host)| user.is_empty() || host.is_empty());

    Warn "MEM_OR_EXTERNAL", "keeps everything in the memory of one process, in production",
        "use MEM_OR_EXTERNAL=REDIS when more than one process or a lasting store is needed",
        |s| s.is_production() && s.storage.is_memory();
    Refuse "REDIS_HOST", "is not set in production with external storage", "set the address of Redis",
        |s| s.is_production() && !s.storage.is_memory() && s.storage.redis_hosts.is_empty()
            && s.storage.redis_sentinels.is_empty();
    Refuse "REDIS_HOST", "is set, and so is REDIS_SENTINEL_HOSTS", "keep one of the two",
        |s| !s.storage.is_memory() && !s.storage.redis_hosts.is_empty() && !s.storage.redis_sentinels.is_empty();
    Refuse "REDIS_CLUSTER", "is on while REDIS_HOST is not set", "set REDIS_HOST to addresses of the cluster",
        |s| !s.storage.is_memory() && s.storage.redis_cluster && s.storage.redis_hosts.is_empty();
    Refuse "REDIS_DB", "is not 0 with a Redis Cluster, which has only database 0", "leave it unset",
        |s| !s.storage.is_memory() && (s.storage.redis_hosts.len() > 1 || s.storage.redis_cluster)
            && s.storage.redis_db != 0;
    Refuse "REDIS_USERNAME", "is set while REDIS_PASSWORD is not", "set the password too, or neither",
        |s| !s.storage.is_memory() && s.storage.redis_user.is_some() && s.storage.redis_password.is_none();
    Warn "REDIS_PASSWORD", "is unset: anyone who reaches Redis can change counters and revocations",
        "set a password on Redis and here",
        |s| !s.storage.is_memory() && s.storage.redis_password.is_none();
    Refuse "REDIS_SENTINEL_MASTER", "is not set while REDIS_SENTINEL_HOSTS is", "set the name of the master, such as mymaster",
        |s| !s.storage.is_memory() && !s.storage.redis_sentinels.is_empty() && s.storage.redis_sentinel_master.is_none();
    Refuse "REDIS_SENTINEL_HOSTS", "is not set while another setting of the Sentinels is", "set their addresses, or remove the other",
        |s| !s.storage.is_memory() && s.storage.redis_sentinels.is_empty() && (s.storage.redis_sentinel_master.is_some()
            || s.storage.redis_sentinel_user.is_some() || s.storage.redis_sentinel_password.is_some());
    Refuse "REDIS_SENTINEL_USERNAME", "is set while REDIS_SENTINEL_PASSWORD is not", "set the password too, or neither",
        |s| !s.storage.is_memory() && s.storage.redis_sentinel_user.is_some() && s.storage.redis_sentinel_password.is_none();
    Refuse "REDIS_TLS", "is off while a file for it is given: the connection would be plain",
        "set REDIS_TLS=true, or remove REDIS_TLS_CA_FILE, REDIS_TLS_CERT_FILE and REDIS_TLS_KEY_FILE",
        |s| !s.storage.is_memory() && !s.storage.redis_tls && (s.storage.redis_tls_ca_file.is_some() || s.storage.redis_tls_cert_file.is_some()
            || s.storage.redis_tls_key_file.is_some());
    Refuse "REDIS_TLS_CERT_FILE", "is unset while REDIS_TLS_KEY_FILE is set", "set both or neither",
        |s| !s.storage.is_memory() && s.storage.redis_tls_key_file.is_some() && s.storage.redis_tls_cert_file.is_none();
    Refuse "REDIS_TLS_KEY_FILE", "is unset while REDIS_TLS_CERT_FILE is set", "set both or neither",
        |s| !s.storage.is_memory() && s.storage.redis_tls_cert_file.is_some() && s.storage.redis_tls_key_file.is_none();
    Refuse "MONGO_DB_HOSTS", "is not set with external storage, and neither is MONGO_DB_URI",
        "set the addresses of MongoDB",
        |s| !s.storage.is_memory() && s.storage.mongo_hosts.is_empty() && s.storage.mongo_uri.is_none();
    Refuse "MONGO_DB_URI", "is not a MongoDB connection string",
        "begin it with mongodb:// or mongodb+srv://",
        |s| s.storage.mongo_uri.as_ref().map(Secret::expose).is_some_and(|uri| {
            !uri.starts_with("mongodb://") && !uri.starts_with("mongodb+srv://")
        });
    Warn "MONGO_DB_URI", "is set, so MONGO_DB_HOSTS, _USER, _PASSWORD and MONGO_REPLICA_SET_NAME have no effect",
        "keep one of the two",
        |s| s.storage.mongo_uri.is_some() && (!s.storage.mongo_hosts.is_empty() || s.storage.mongo_user.is_some()
            || s.storage.mongo_password.is_some() || s.storage.mongo_replica_set.is_some());
    Refuse "MONGO_DB_TLS", "is off while a file for it is given: the connection would be plain",
        "set MONGO_DB_TLS=true, or remove MONGO_DB_TLS_CA_FILE and MONGO_DB_TLS_CERT_KEY_FILE",
        |s| !s.storage.is_memory() && !s.storage.mongo_tls && s.storage.mongo_uri.is_none()
            && (s.storage.mongo_tls_ca_file.is_some() || s.storage.mongo_tls_client_file.is_some());
    Refuse "MONGO_DB_MIN_POOL_SIZE", "is above MONGO_DB_MAX_POOL_SIZE", "lower it, or raise the other",
        |s| !s.storage.is_memory() && s.storage.mongo_min_pool > s.storage.mongo_max_pool.get();
    Refuse "MONGO_DB_USER", "is unset while MONGO_DB_PASSWORD is set", "set both or neither",
        |s| !s.storage.is_memory() && s.storage.mongo_password.is_some() && s.storage.mongo_user.is_none();
    Refuse "MONGO_DB_PASSWORD", "is unset while MONGO_DB_USER is set", "set both or neither",
        |s| !s.storage.is_memory() && s.storage.mongo_user.is_some() && s.storage.mongo_password.is_none();

    Refuse "xff_trusted_proxies", "is empty in production while trust_x_forwarded_for is on",
        "list the addresses of the proxies in front",
        |s| s.is_production() && trusts_any_proxy(s);
    Warn "xff_trusted_proxies", "is empty while trust_x_forwarded_for is on: any caller can choose its address",
        "list the addresses of the proxies in front",
        |s| !s.is_production() && trusts_any_proxy(s);
    Warn "ALLOWED_ORIGINS", "is `*` in production, with credentials and without CORS_STRICT",
        "list the origins, or set CORS_STRICT=true",
        |s| s.is_production() && s.network.allowed_origins == Origins::Any && s.network.allow_credentials
            && !s.network.cors_strict;
    Warn "COOKIE_DOMAIN", "has no dot and is never used", "set a domain such as example.com, or leave it unset",
        |s| s.sessions.cookie_domain.as_ref().is_some_and(|domain| !domain.contains('.'));

    Refuse "DOORMAN_APIS_NAMESPACE_SELECTOR", "is not set while DOORMAN_APIS_NAMESPACES=Selector",
        "set a label selector, such as {\"matchLabels\":{\"team\":\"a\"}}",
        |s| s.definitions.namespaces == ApiNamespaces::Selector && s.definitions.namespace_selector.is_none();
    Warn "DOORMAN_APIS_NAMESPACE_SELECTOR", "is set but not used: DOORMAN_APIS_NAMESPACES is not Selector",
        "set DOORMAN_APIS_NAMESPACES=Selector or remove it",
        |s| s.definitions.namespaces != ApiNamespaces::Selector && s.definitions.namespace_selector.is_some();
}

/// Adds what the guards find. A variable that was already refused isn't refused again for what follows from it.
pub(super) fn apply(settings: &Settings, errors: &mut Vec<Finding>, warnings: &mut Vec<Finding>) {
    for guard in GUARDS.iter().filter(|guard| (guard.violated)(settings)) {
        let finding = Finding::new(guard.variable, guard.problem, guard.remedy);
        if errors.iter().any(|error| error.variable == guard.variable) {
            continue;
        }
        match guard.severity {
            Refuse => errors.push(finding),
            Warn => warnings.push(finding),
        }
    }
    // Where no other key is left, what is wrong with these is a reason not to start.
    if errors.iter().any(|error| error.variable == "JWT_SECRET_KEY") {
        errors.extend(warnings.extract_if(.., |warning| warning.variable == "JWT_KEYS"));
    }
    let (server, storage) = (&settings.server, &settings.storage);
    let pairs = [
        (("SSL_CERTFILE", &server.certificate_file), ("SSL_KEYFILE", &server.key_file)),
        (("REDIS_TLS_CERT_FILE", &storage.redis_tls_cert_file), ("REDIS_TLS_KEY_FILE", &storage.redis_tls_key_file)),
        (
            ("MONGO_DB_TLS_CERT_KEY_FILE", &storage.mongo_tls_client_file),
            ("MONGO_DB_TLS_CERT_KEY_FILE", &storage.mongo_tls_client_file),
        ),
    ];
    for ((certificate, certificate_file), (key, key_file)) in pairs {
        if let (Some(certificate_file), Some(key_file)) = (certificate_file, key_file) {
            certificate_pair((certificate, certificate_file), (key, key_file), errors);
        }
    }
    let authorities =
        [("REDIS_TLS_CA_FILE", &storage.redis_tls_ca_file), ("MONGO_DB_TLS_CA_FILE", &storage.mongo_tls_ca_file)];
    for (variable, file) in authorities {
        if let Some(file) = file
            && let Err(problem) = certificates(file)
        {
            errors.push(Finding::new(variable, problem, "name a readable PEM file with the authority's certificate"));
        }
    }
}

/// The certificates of a file, at least one; else what is wrong with it.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    match CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        no_chain => {
            let why = no_chain.err().map(|error| format!(": {error}")).unwrap_or_default();
            Err(format!("{} holds no readable certificate{why}", file.display()))
        }
    }
}

/// Both files readable, and the key that of the certificate.
fn certificate_pair(
    (certificate, certificate_file): (&str, &Path),
    (key_variable, key_file): (&str, &Path),
    errors: &mut Vec<Finding>,
) {
    let key = match PrivateKeyDer::from_pem_file(key_file) {
        Ok(key) => Some(key),
        Err(error) => {
            let problem = format!("{} holds no readable private key: {error}", key_file.display());
            errors.push(Finding::new(key_variable, problem, "name a readable PEM file with the private key"));
            None
        }
    };
    let chain = match certificates(certificate_file) {
        Ok(chain) => chain,
        Err(problem) => {
            errors.push(Finding::new(certificate, problem, "name a readable PEM file with the certificate chain"));
            return;
        }
    };
    let Some(key) = key else { return };
    match CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()) {
        Ok(_) => {}
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            let problem = format!("{} is not the key of the certificate in {certificate}", key_file.display());
            errors.push(Finding::new(key_variable, problem, "name the certificate and the key of one pair"));
        }
        Err(error) => {
            let problem = format!("{} can't be used with its key: {error}", certificate_file.display());
            errors.push(Finding::new(certificate, problem, "name a certificate and key that TLS supports"));
        }
    }
}
