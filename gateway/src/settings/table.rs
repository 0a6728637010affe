//! The one table of variables.
//!
//! A row is the whole truth about a variable: it makes the field of the typed tree, the code that reads it, and its
//! line in `docs/settings.md`. A row reads
//!
//! ```text
//! field: Type = "NAME" | "ALIAS", "default" (empty: none), Origin Effect [live] [(check)]: "Meaning.";
//! ```

use std::{num::NonZeroU16, num::NonZeroU32, path::PathBuf, time::Duration};

use http::{HeaderValue, Method};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{
    live::Live,
    source::Reader,
    token_keys::TokenKeys,
    value::{
        ApiNamespaces, ByteCount, Environment, FailMode, HeaderNames, HostPort, LogFormat, LogLevel, Origins, Parse,
        PlatformDefinitions, SameSite, Secret, StorageMode, TimeUnit,
    },
};

/// Where a variable's name and meaning come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The operations guide names it.
    Guide,
    /// Doorman reads it, the guide is silent.
    Doorman,
    /// New in Doorman for Kubernetes.
    New,
}

/// What a variable does in this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// What its meaning says.
    Used,
    /// It is read and checked; nothing acts on it yet.
    NotYet,
}

/// What is known of one variable, whatever its type.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// The name, as in the environment.
    pub name: &'static str,
    /// Other accepted names; the name wins.
    pub aliases: &'static [&'static str],
    /// The type, in words.
    pub kind: &'static str,
    /// May it be given as a file, with `_FILE` after its name?
    pub is_secret: bool,
    /// The text that stands for an unset variable; empty: none.
    pub default: &'static str,
    /// Where it comes from.
    pub origin: Origin,
    /// Does this version act on it?
    pub effect: Effect,
    /// Can it change while the process runs?
    pub is_live: bool,
    /// What it does.
    pub meaning: &'static str,
}

/// The variables of one branch of the tree.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// Its heading.
    pub title: &'static str,
    /// In the order of the table.
    pub variables: &'static [Variable],
}

/// Looks at a value of the right type; says what is wrong with it.
pub(super) type Check<T> = fn(&T) -> Option<&'static str>;

fn anything<T>(_: &T) -> Option<&'static str> {
    None
}

fn above_zero(value: &Duration) -> Option<&'static str> {
    value.is_zero().then_some("must be above 0")
}

fn one_to_nine<T: Copy + Into<u32>>(value: &T) -> Option<&'static str> {
    (!(1..=9).contains(&(*value).into())).then_some("must be 1 to 9")
}

fn next(rows: &mut std::slice::Iter<'static, Variable>) -> &'static Variable {
    rows.next().unwrap_or_else(|| unreachable!("there is a row for every field"))
}

macro_rules! given_or {
    (, $default:expr) => {
        $default
    };
    ($given:expr, $default:expr) => {
        $given
    };
}

macro_rules! when_live {
    (, $($code:tt)*) => {};
    (live, $($code:tt)*) => {
        $($code)*
    };
}

macro_rules! settings {
    ($(
        $section:ident: $Section:ident, $title:literal {
            $(
                $field:ident: $type:ty = $name:literal $(| $alias:literal)*, $default:literal,
                $origin:ident $effect:ident $($live:ident)? $(($check:path))?: $meaning:literal;
            )*
        }
    )*) => {
        /// Every setting of the gateway, as it was at start. What depends on more than one variable is a method.
        ///
        /// Whoever acts on a row marked live reads it from [`Settings::live`] at the moment it counts.
        #[derive(Clone, Debug)]
        pub struct Settings {
            $( #[doc = $title] pub $section: $Section, )*
            pub(super) live: Live,
        }

        /// Every setting as it is now: rows marked live follow the configuration file, all others are as at start.
        #[derive(Clone, Debug)]
        pub struct Now {
            $( #[doc = $title] pub $section: $Section, )*
        }

        $(
            #[doc = $title]
            #[derive(Clone, Debug)]
            pub struct $Section {
                $( #[doc = concat!("`", $name, "`: ", $meaning)] pub $field: $type, )*
            }

            impl $Section {
                const TABLE: Section = Section {
                    title: $title,
                    variables: &[$(
                        Variable {
                            name: $name,
                            aliases: &[$($alias),*],
                            kind: <$type as Parse>::KIND,
                            is_secret: <$type as Parse>::SECRET,
                            default: $default,
                            origin: Origin::$origin,
                            effect: Effect::$effect,
                            is_live: !(&[$(stringify!($live))?] as &[&str]).is_empty(),
                            meaning: $meaning,
                        },
                    )*],
                };

                fn read(reader: &mut Reader) -> Self {
                    // Fields are read in the order they are written in: the order of the rows.
                    let mut rows = Self::TABLE.variables.iter();
                    Self { $( $field: reader.read(next(&mut rows), given_or!($($check)?, anything)), )* }
                }

                fn take_live(&mut self, new: Self) {
                    $( when_live!($($live)?, self.$field = new.$field;); )*
                    // Most sections have no such row.
                    _ = new;
                }
            }
        )*

        impl Settings {
            pub(super) fn new(start: Now, live: Live) -> Self {
                Self { $( $section: start.$section, )* live }
            }
        }

        impl Now {
            pub(super) fn read(reader: &mut Reader) -> Self {
                Self { $( $section: $Section::read(reader), )* }
            }

            pub(super) fn take_live(&mut self, new: Self) {
                $( self.$section.take_live(new.$section); )*
            }
        }

        /// The table: every variable the gateway reads.
        pub const SECTIONS: &[Section] = &[$( $Section::TABLE, )*];
    };
}

settings! {
    server: Server, "Process and listeners" {
        environment: Environment = "ENV", "development", Guide Used:
            "`production` (any case) turns on the production guards.";
        port: u16 = "PORT", "5001", Guide Used:
            "Port of the traffic and of the platform API, on all interfaces. 0 lets the system choose.";
        admin_port: u16 = "DOORMAN_ADMIN_PORT", "9090", New Used:
            "Port for the cluster only: metrics and the revision that the pod serves. 0 lets the system choose.";
        threads: Option<NonZeroU16> = "THREADS", "", Guide Used:
            "Changes nothing: one process uses all cores. In memory mode, other than 1 is refused.";
        https_only: bool = "HTTPS_ONLY", "false", Guide Used:
            "This process terminates TLS with `SSL_CERTFILE` and `SSL_KEYFILE`; secure cookies, CSRF check and HSTS are on. Without the two files the listener stays plain, for a proxy in front.";
        https_enabled: bool = "HTTPS_ENABLED", "false", Guide Used:
            "A proxy terminates TLS: plain listener; secure cookies, CSRF check and HSTS are on.";
        certificate_file: Option<PathBuf> = "SSL_CERTFILE", "", Guide Used:
            "PEM file with the certificate chain, leaf first.";
        key_file: Option<PathBuf> = "SSL_KEYFILE", "", Guide Used:
            "PEM file with the private key of the certificate.";
        pid_file: PathBuf = "PID_FILE", "doorman.pid", Doorman Used:
            "File that whoever starts the process writes its id to. With it, and in a cluster, `POST /platform/security/restart` works.";
        drain: Duration = "DOORMAN_DRAIN_SECONDS", "5", New Used:
            "How long requests are still accepted after SIGTERM. Readiness turns off at once.";
        shutdown: Duration = "DOORMAN_SHUTDOWN_SECONDS", "30", New Used:
            "Longest wait for requests in flight once the listeners are closed.";
        config_file: Option<PathBuf> = "DOORMAN_CONFIG_FILE", "", Doorman Used:
            "YAML or JSON file (`.json`) of settings; the environment wins. Nested keys are joined with `_` and upper-cased. It is read again on SIGHUP and `POST /platform/config/reload`; then rows marked live change.";
    }

    storage: Storage, "Storage" {
        mode: StorageMode = "MEM_OR_EXTERNAL" | "MEM_OR_REDIS", "MEM", Guide Used:
            "`MEM`: documents, caches and counters in the process. `REDIS` or `EXTERNAL`: MongoDB for documents, Redis for caches, counters and revocations.";
        redis_hosts: Vec<HostPort> = "REDIS_HOST", "", Guide Used:
            "`host` or `host:port` of one server, or a comma list of the nodes of a Redis Cluster. Unset: `localhost`; required in production with external storage.";
        redis_port: u16 = "REDIS_PORT", "6379", Guide Used:
            "Port of the hosts that are listed without one.";
        redis_db: u32 = "REDIS_DB", "0", Guide Used:
            "Database number; a Redis Cluster has only 0.";
        redis_user: Option<String> = "REDIS_USERNAME", "", New Used:
            "User of the Redis access control list.";
        redis_password: Option<Secret> = "REDIS_PASSWORD", "", Doorman Used:
            "Password of Redis.";
        redis_cluster: bool = "REDIS_CLUSTER", "false", New Used:
            "`REDIS_HOST` names a Redis Cluster, even if it is one address. A comma list always does.";
        redis_sentinels: Vec<HostPort> = "REDIS_SENTINEL_HOSTS", "", New Used:
            "Comma list of Redis Sentinels, each `host[:port]` (port 26379), in place of `REDIS_HOST`: they are asked for the master whenever the connection breaks or the server turns out to be a replica.";
        redis_sentinel_master: Option<String> = "REDIS_SENTINEL_MASTER", "", New Used:
            "Name of the master that the Sentinels watch. Required with `REDIS_SENTINEL_HOSTS`.";
        redis_sentinel_user: Option<String> = "REDIS_SENTINEL_USERNAME", "", New Used:
            "User of the Sentinels, if they ask for one.";
        redis_sentinel_password: Option<Secret> = "REDIS_SENTINEL_PASSWORD", "", New Used:
            "Password of the Sentinels, if they ask for one; that of Redis is never sent to them.";
        redis_tls: bool = "REDIS_TLS", "false", New Used:
            "Connect to Redis, all its nodes and the Sentinels over TLS; certificates are checked, with the name or address that is connected to.";
        redis_tls_ca_file: Option<PathBuf> = "REDIS_TLS_CA_FILE", "", New Used:
            "PEM file with the authorities that Redis is trusted by. Unset: those of the system.";
        redis_tls_cert_file: Option<PathBuf> = "REDIS_TLS_CERT_FILE", "", New Used:
            "PEM file with the certificate shown to Redis, given together with its key.";
        redis_tls_key_file: Option<PathBuf> = "REDIS_TLS_KEY_FILE", "", New Used:
            "PEM file with the key of that certificate.";
        limits_fail_mode: FailMode = "DOORMAN_LIMITS_FAIL_MODE", "Open", New Used:
            "What rate limits do while Redis is away. `Open`: each process counts for itself. `Closed`: what is limited is refused with 503.";
        mongo_hosts: Vec<HostPort> = "MONGO_DB_HOSTS", "", Guide Used:
            "Comma list of MongoDB servers, each `host[:port]` (port 27017). This or `MONGO_DB_URI` is required with external storage.";
        mongo_replica_set: Option<String> = "MONGO_REPLICA_SET_NAME", "", Guide Used:
            "Replica set name, passed on for a single host too.";
        mongo_user: Option<String> = "MONGO_DB_USER", "", Doorman Used:
            "User of MongoDB, given together with its password. Both unset: no login.";
        mongo_password: Option<Secret> = "MONGO_DB_PASSWORD", "", Doorman Used:
            "Password of MongoDB.";
        mongo_auth_source: String = "MONGO_DB_AUTH_SOURCE", "doorman", New Used:
            "Database that knows the user; often `admin`.";
        mongo_uri: Option<Secret> = "MONGO_DB_URI", "", Doorman Used:
            "Whole connection string, in place of the five settings above. What it leaves open of TLS and pool is as set below.";
        mongo_tls: bool = "MONGO_DB_TLS", "false", New Used:
            "Connect to MongoDB over TLS; certificates are checked.";
        mongo_tls_ca_file: Option<PathBuf> = "MONGO_DB_TLS_CA_FILE", "", New Used:
            "PEM file with the authorities that MongoDB is trusted by. Unset: the well-known public ones.";
        mongo_tls_client_file: Option<PathBuf> = "MONGO_DB_TLS_CERT_KEY_FILE", "", New Used:
            "PEM file with the certificate shown to MongoDB and its key, in one.";
        mongo_max_pool: NonZeroU32 = "MONGO_DB_MAX_POOL_SIZE", "100", New Used:
            "Most connections to each MongoDB server.";
        mongo_min_pool: u32 = "MONGO_DB_MIN_POOL_SIZE", "5", New Used:
            "Connections that are kept open to each MongoDB server.";
        cache_entries: NonZeroU32 = "CACHE_MAX_SIZE", "10000", Doorman Used:
            "Entries of the in-process cache; the least recently used goes first.";
        dump_path: PathBuf = "MEM_DUMP_PATH", "generated/memory_dump.bin", Guide Used:
            "Where memory dumps are written; the time is added to the name.";
        auto_save: bool = "MEM_AUTO_SAVE_ENABLED", "false", Doorman Used:
            "Dump the memory regularly, until the security settings say otherwise.";
        auto_save_every: Duration = "MEM_AUTO_SAVE_FREQ", "900", Doorman Used (above_zero):
            "Time between two regular dumps, 60 s at the least.";
        dump_keep: NonZeroU32 = "MEM_DUMP_KEEP", "10", New Used:
            "Memory dumps kept in that place; older ones are removed.";
        ignore_bad_dump: bool = "DOORMAN_IGNORE_BAD_DUMP", "false", New Used:
            "Starts although the newest dump can't be restored, with the next older good one or with nothing. It says so loudly.";
        security_settings_file: PathBuf = "SECURITY_SETTINGS_FILE", "generated/security_settings.json", Doorman Used:
            "Copy of the security settings, read in memory mode when the store has none.";
    }

    keys: Keys, "Secrets and keys" {
        jwt: Option<Secret> = "JWT_SECRET_KEY", "", Guide Used:
            "HS256 key of the tokens, `kid` `legacy-key`. Required unless one of the next two is set; 32 or more characters in production.";
        jwt_keys: TokenKeys = "JWT_KEYS", "", Doorman Used:
            "JSON list of token keys: `kid`, `algorithm` (`HS256`, `RS256`), `active`, and `secret`, or `private_key[_path]` and `public_key[_path]`. The first active one signs. With one valid key here, `JWT_SECRET_KEY` is no key any more.";
        jwt_folder: Option<PathBuf> = "DOORMAN_JWT_KEYS_DIR", "", New Used:
            "Folder with one token key a file, in place of the two settings above: the name is the `kid` (`JWT_SECRET_KEY` and `jwt-secret-key`: `legacy-key`), the content a secret or an RSA key in PEM. The file `active` names the key that signs, else the last by name does. Changes are taken up while the gateway runs.";
        token_encryption: Option<Secret> = "TOKEN_ENCRYPTION_KEY", "", Guide Used:
            "Encrypts stored upstream keys. Unset: `MEM_ENCRYPTION_KEY` does; both unset: they are stored in plain text. 32 or more characters in production.";
        token_encryption_previous: Option<Secret> = "TOKEN_ENCRYPTION_KEY_PREVIOUS", "", New Used:
            "The `TOKEN_ENCRYPTION_KEY` before this one: what it encrypted is still read, nothing new is encrypted with it.";
        token_encryption_is_optional: bool = "DOORMAN_TOKEN_ENCRYPTION_KEY_OPTIONAL", "false", New Used:
            "Lets production start without a `TOKEN_ENCRYPTION_KEY` of 32 characters; a warning stays.";
        memory_encryption: Option<Secret> = "MEM_ENCRYPTION_KEY", "", Guide Used:
            "Encrypts memory dumps; stands in for `TOKEN_ENCRYPTION_KEY`. 8 or more characters, 32 in production memory mode, where it is required.";
        vault: Option<Secret> = "VAULT_KEY", "", Doorman Used:
            "Encrypts vault entries; without it the vault takes none.";
    }

    admin: Admin, "First administrator" {
        email: String = "DOORMAN_ADMIN_EMAIL", "admin@doorman.dev", Doorman Used:
            "E-mail address of the user `admin`, who may make one call a second until its limits are changed. With external storage, only until the user is stored.";
        password: Option<Secret> = "DOORMAN_ADMIN_PASSWORD", "", Doorman Used:
            "Password of the user `admin`, 12 or more characters. Required. With external storage, only until the user has one: take `password` off the user in MongoDB and restart to have it stored anew.";
    }

    sessions: Sessions, "Sessions and cookies" {
        access_life: NonZeroU32 = "AUTH_EXPIRE_TIME", "30", Guide Used:
            "Life of an access token, in the unit of the next setting.";
        access_life_unit: TimeUnit = "AUTH_EXPIRE_TIME_FREQ", "minutes", Guide Used:
            "Unit of `AUTH_EXPIRE_TIME`; usual short forms are understood.";
        refresh_life: NonZeroU32 = "AUTH_REFRESH_EXPIRE_TIME", "7", Guide Used:
            "Life of a refresh token, in the unit of the next setting.";
        refresh_life_unit: TimeUnit = "AUTH_REFRESH_EXPIRE_FREQ", "days", Guide Used:
            "Unit of `AUTH_REFRESH_EXPIRE_TIME`.";
        cookie_secure: Option<bool> = "COOKIE_SECURE", "", Doorman Used:
            "Forces the Secure attribute on or off. Unset: on when `HTTPS_ONLY` or `HTTPS_ENABLED` is, or when the request came by https.";
        cookie_domain: Option<String> = "COOKIE_DOMAIN", "", Guide Used:
            "Domain of the cookies, when it has a dot and is the request's host or a parent of it. Otherwise they belong to the host alone.";
        cookie_same_site: SameSite = "COOKIE_SAMESITE", "strict", Doorman Used:
            "SameSite of the cookies. `none` without Secure is `lax`; so is any other value.";
        login_rate_limit: NonZeroU32 = "LOGIN_IP_RATE_LIMIT", "5", Doorman Used:
            "Logins of one client address in one window.";
        login_rate_window: Duration = "LOGIN_IP_RATE_WINDOW", "300", Doorman Used (above_zero):
            "The window of `LOGIN_IP_RATE_LIMIT`.";
        login_rate_disabled: bool = "LOGIN_IP_RATE_DISABLED", "false", Doorman Used:
            "Switches the limits on logins and self-registrations of one address off.";
        account_rate_limit: NonZeroU32 = "LOGIN_ACCOUNT_RATE_LIMIT", "20", New Used:
            "Failed logins with one name or address in one window, from wherever; then further ones are refused, right or wrong.";
        account_rate_window: Duration = "LOGIN_ACCOUNT_RATE_WINDOW", "900", New Used (above_zero):
            "The window of `LOGIN_ACCOUNT_RATE_LIMIT`.";
        register_rate_limit: NonZeroU32 = "REGISTER_IP_RATE_LIMIT", "5", Doorman Used:
            "Self-registrations of one client address in one window.";
        register_rate_window: Duration = "REGISTER_IP_RATE_WINDOW", "3600", Doorman Used (above_zero):
            "The window of `REGISTER_IP_RATE_LIMIT`.";
    }

    network: Network, "Network trust, CORS and headers" {
        trust_forwarded_for: Option<bool> = "trust_x_forwarded_for" | "TRUST_X_FORWARDED_FOR", "", Guide Used:
            "Believe the client address in forwarding headers. Set: pins the security setting of the same name. Unset: it is off until that setting turns it on.";
        trusted_proxies: Vec<IpNet> = "xff_trusted_proxies" | "XFF_TRUSTED_PROXIES", "", Guide Used:
            "Proxies whose forwarding headers are believed: a comma list or a JSON list. Production trusts nobody when the list is empty.";
        localhost_bypass: Option<bool> = "LOCAL_HOST_IP_BYPASS", "", Guide Used:
            "Loopback callers without forwarding headers skip the IP rules. Set: pins the security setting `allow_localhost_bypass`. Unset: on, but off in production.";
        in_docker: bool = "DOORMAN_IN_DOCKER", "false", Doorman Used:
            "Counts `172.17.0.1` and `192.168.65.1` as loopback.";
        allowed_origins: Origins = "ALLOWED_ORIGINS", "*", Guide Used:
            "Origins that browsers may call `/platform` from.";
        allow_methods: Vec<Method> = "ALLOW_METHODS", "GET,POST,PUT,DELETE,OPTIONS,PATCH,HEAD", Doorman Used:
            "Methods of the preflight answer.";
        allow_headers: HeaderNames = "ALLOW_HEADERS", "*", Doorman Used:
            "Headers of the preflight answer. `*` stands for `Accept, Content-Type, X-CSRF-Token, Authorization, X-Requested-With`.";
        allow_credentials: bool = "ALLOW_CREDENTIALS", "true", Guide Used:
            "Sends `Access-Control-Allow-Credentials: true`.";
        cors_strict: bool = "CORS_STRICT", "false", Guide Used:
            "With `*` and credentials, only origins on `localhost` and `127.0.0.1` are allowed.";
        strict_options: bool = "STRICT_OPTIONS_405", "false", Doorman Used:
            "Answers preflights for unregistered REST and gRPC endpoints with 405.";
        content_security_policy: HeaderValue = "CONTENT_SECURITY_POLICY",
            "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'; img-src 'self' data:; connect-src 'self';",
            Doorman Used: "`Content-Security-Policy` of all responses.";
    }

    limits: Limits, "Request limits" {
        body: ByteCount = "MAX_BODY_SIZE_BYTES", "1048576", Guide Used live:
            "Largest request body.";
        rest_body: Option<ByteCount> = "MAX_BODY_SIZE_BYTES_REST", "", Doorman Used live:
            "The same for `/api/rest`. Unset: `MAX_BODY_SIZE_BYTES`.";
        soap_body: Option<ByteCount> = "MAX_BODY_SIZE_BYTES_SOAP", "", Guide Used live:
            "The same for `/api/soap`.";
        graphql_body: Option<ByteCount> = "MAX_BODY_SIZE_BYTES_GRAPHQL", "", Doorman Used live:
            "The same for `/api/graphql`.";
        grpc_body: Option<ByteCount> = "MAX_BODY_SIZE_BYTES_GRPC", "", Doorman Used live:
            "The same for `/api/grpc`.";
        multipart: ByteCount = "MAX_MULTIPART_SIZE_BYTES", "10485760", Guide NotYet:
            "Largest upload; `MAX_BODY_SIZE_BYTES` doesn't apply to uploads.";
        proto: ByteCount = "MAX_PROTO_SIZE_BYTES", "1048576", Doorman NotYet:
            "Largest proto text.";
        page_size: NonZeroU32 = "MAX_PAGE_SIZE", "100", Guide Used:
            "Largest `page_size` of a list.";
        body_exempt_paths: Vec<String> = "BODY_LIMIT_EXCLUDE_PATHS", "", Doorman Used:
            "Comma list of paths without body limit, exact or ending with `*`.";
        body_unlimited: bool = "DISABLE_BODY_SIZE_LIMIT", "false", Doorman Used:
            "Switches all body limits off.";
        skip_tiers: bool = "SKIP_TIER_RATE_LIMIT", "false", Doorman Used:
            "No limits by tier.";
        admin_needs_subscription: bool = "ENFORCE_ADMIN_SUBSCRIPTION", "true", Doorman Used:
            "Administrators need a subscription as everyone does.";
    }

    upstream: Upstream, "Calls to upstreams" {
        connect_timeout: Duration = "HTTP_CONNECT_TIMEOUT", "5", Doorman Used (above_zero):
            "Longest wait for a connection to an upstream.";
        read_timeout: Duration = "HTTP_READ_TIMEOUT", "30", Doorman Used (above_zero):
            "Longest wait for the next bytes of an upstream.";
        write_timeout: Duration = "HTTP_WRITE_TIMEOUT", "30", Doorman Used (above_zero):
            "Longest wait for an upstream to take the next bytes.";
        pool_timeout: Duration = "HTTP_TIMEOUT", "30", Doorman Used (above_zero):
            "Longest wait for a free connection of the pool.";
        max_connections: NonZeroU32 = "HTTP_MAX_CONNECTIONS", "100", Doorman Used:
            "Most connections to one upstream address; calls beyond those over HTTP/1.1 wait for one, as long as `HTTP_TIMEOUT` or the API says.";
        max_idle: u32 = "HTTP_MAX_KEEPALIVE", "50", Doorman Used:
            "Idle connections kept for each upstream address.";
        idle_life: Duration = "HTTP_KEEPALIVE_EXPIRY", "30", Doorman Used:
            "Time after which an idle connection is closed.";
        http2: bool = "HTTP_ENABLE_HTTP2", "false", Doorman Used:
            "HTTP/2 to `https` upstreams that offer it.";
        retry_base_delay: Duration = "HTTP_RETRY_BASE_DELAY", "0.25", Doorman Used live:
            "Half of the longest first pause between attempts; it doubles, with full jitter.";
        retry_max_delay: Duration = "HTTP_RETRY_MAX_DELAY", "2.0", Doorman Used live:
            "Longest pause between attempts.";
        breaker: bool = "CIRCUIT_BREAKER_ENABLED", "true", Doorman Used live:
            "Stop calling an upstream that keeps failing.";
        breaker_threshold: NonZeroU32 = "CIRCUIT_BREAKER_THRESHOLD", "5", Doorman Used live:
            "Failures in a row that open the breaker.";
        breaker_timeout: Duration = "CIRCUIT_BREAKER_TIMEOUT", "30", Doorman Used live (above_zero):
            "Time until an open breaker lets a call try again.";
        routed_credentials: bool = "DOORMAN_ROUTING_CREDENTIALS", "false", New Used:
            "Servers of a `client-key` are sent an API's credit key and swapped `Authorization` as if they were its own.";
        grpc_retries: u32 = "GRPC_MAX_RETRIES", "0", Doorman NotYet live:
            "Further attempts of a gRPC call.";
        grpc_retry_base_ms: u32 = "GRPC_RETRY_BASE_MS", "100", Doorman NotYet live:
            "First pause between gRPC attempts, in milliseconds.";
        grpc_retry_max_ms: u32 = "GRPC_RETRY_MAX_MS", "1000", Doorman NotYet live:
            "Longest pause between gRPC attempts, in milliseconds.";
        grpc_reflection: bool = "DOORMAN_ENABLE_GRPC_REFLECTION", "false", Doorman NotYet:
            "Ask gRPC upstreams for their types.";
    }

    logs: Logs, "Logs" {
        format: LogFormat = "LOG_FORMAT", "plain", Guide Used:
            "How a record is written.";
        level: LogLevel = "LOG_LEVEL", "INFO", Guide Used live:
            "The least severe record that is written.";
        folder: PathBuf = "LOGS_DIR", "logs", Doorman Used:
            "Folder of `doorman.log` and `doorman-trail.log`.";
        memory: bool = "MEMORY_LOG_ENABLED", "true", Doorman Used:
            "Keeps the last records in memory for the log viewer.";
    }

    metrics: Metrics, "Metrics" {
        enabled: bool = "PROMETHEUS_ENABLED", "true", Doorman Used:
            "Offers `/metrics` beside the platform API too. The admin port always has it.";
        public: bool = "PROMETHEUS_PUBLIC", "false", Doorman Used:
            "No access check on that `/metrics`.";
        token: Option<Secret> = "PROMETHEUS_BEARER_TOKEN" | "PROMETHEUS_TOKEN", "", Doorman Used:
            "Token that `/metrics` asks for.";
        allow: Vec<IpNet> = "PROMETHEUS_ALLOWLIST" | "PROMETHEUS_IP_ALLOWLIST", "", Doorman Used:
            "Addresses that may read `/metrics`. Empty: loopback only.";
        trust_forwarded_for: bool = "PROMETHEUS_TRUST_XFF", "false", Doorman Used:
            "Forwarding headers decide the address of the reader.";
        latency_samples: NonZeroU32 = "METRICS_PCT_SAMPLES", "500", Doorman Used:
            "Changes nothing: percentiles come from all latencies, not from a choice of them.";
    }

    features: Features, "Features" {
        strict_envelope: bool = "STRICT_RESPONSE_ENVELOPE", "false", Guide Used live:
            "Wraps platform answers in `status_code`, `response`, `error_code`, `error_message`.";
        compression: bool = "COMPRESSION_ENABLED", "true", Doorman Used:
            "Compresses responses with gzip for clients that take it.";
        compression_level: u16 = "COMPRESSION_LEVEL", "1", Doorman Used (one_to_nine):
            "1 (fast) to 9 (small).";
        compression_minimum: ByteCount = "COMPRESSION_MINIMUM_SIZE", "500", Doorman Used:
            "Smallest response that is compressed, where its length is known beforehand.";
        websockets: bool = "WEBSOCKETS_ENABLED", "false", Doorman Used:
            "Answers WebSocket handshakes like any other request; otherwise they get 403 `GTW015`. The protocol is never changed.";
        registration: bool = "REGISTRATION_ENABLED", "true", Doorman Used:
            "Lets anybody add a user for themselves (`POST /platform/authorization/register`); otherwise that gets 403 `AUTH010`.";
        demo: bool = "DEMO_SEED", "false", Doorman NotYet:
            "Memory mode: fills the store with random data at start.";
        demo_users: u32 = "DEMO_USERS", "40", Doorman NotYet: "Users of the demo.";
        demo_apis: u32 = "DEMO_APIS", "15", Doorman NotYet: "APIs of the demo.";
        demo_endpoints: u32 = "DEMO_ENDPOINTS", "6", Doorman NotYet: "Endpoints of each API of the demo.";
        demo_groups: u32 = "DEMO_GROUPS", "8", Doorman NotYet: "Groups of the demo.";
        demo_protos: u32 = "DEMO_PROTOS", "6", Doorman NotYet: "Proto files of the demo.";
        demo_logs: u32 = "DEMO_LOGS", "1500", Doorman NotYet: "Log records of the demo.";
    }

    definitions: Definitions, "Definitions" {
        gateway_name: Option<String> = "DOORMAN_GATEWAY_NAME", "", New Used:
            "Name of the `DoormanGateway` this process belongs to.";
        gateway_namespace: Option<String> = "DOORMAN_GATEWAY_NAMESPACE", "", New Used:
            "Namespace of that `DoormanGateway`.";
        namespaces: ApiNamespaces = "DOORMAN_APIS_NAMESPACES", "Same", New Used:
            "Namespaces that definitions are taken from.";
        namespace_selector: Option<LabelSelector> = "DOORMAN_APIS_NAMESPACE_SELECTOR", "", New Used:
            "The namespaces of `Selector`, by their labels.";
        selector: Option<LabelSelector> = "DOORMAN_APIS_SELECTOR", "", New Used:
            "Takes only definitions with these labels. Unset: all.";
        snapshot_folder: Option<PathBuf> = "DOORMAN_SNAPSHOT_DIR", "", New Used:
            "Folder for the last good snapshot, so that a pod can start while the API server is away. Unset: none is kept.";
        platform: PlatformDefinitions = "DOORMAN_PLATFORM_DEFINITIONS", "ReadOnly", New Used:
            "Whether the platform API may write definitions to the cluster. Without a cluster it writes to the document store.";
        kubernetes_wait: Duration = "DOORMAN_KUBERNETES_CONNECT_SECONDS", "10", New Used:
            "How long a start waits for the API server before it uses the snapshot in that folder.";
    }
}
