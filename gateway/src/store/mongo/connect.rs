//! From settings to a client of MongoDB: addresses, login, TLS and pool.
//!
//! A connection string comes first; what it leaves open of TLS and pool is as the other settings say. Without one,
//! nothing has to be escaped: user and password are taken as they are.

use std::{io, time::Duration};

use mongodb::{
    error::{Error, ErrorKind},
    options::{ClientOptions, Credential, ServerAddress, Tls, TlsOptions},
};

use crate::settings::Storage;

/// How often a server whose last answer was a failure is asked again, at the latest.
const LOOK: Duration = Duration::from_secs(5);

/// What the client is made with; no server is asked, but a `mongodb+srv` name is looked up.
pub(super) async fn options(storage: &Storage, timeout: Duration, database: &str) -> Result<ClientOptions, Error> {
    let mut options = match &storage.mongo_uri {
        Some(uri) => ClientOptions::parse(uri.expose()).await?,
        None => listed(storage),
    };
    options.tls = tls(options.tls.take(), storage)?;
    let most = *options.max_pool_size.get_or_insert(storage.mongo_max_pool.get());
    options.min_pool_size.get_or_insert(storage.mongo_min_pool.min(most));
    options.app_name.get_or_insert_with(|| "doorman".to_owned());
    // Sooner than whoever waits gives up: the client knows why there is no server.
    options.server_selection_timeout.get_or_insert(timeout * 9 / 10);
    options.connect_timeout.get_or_insert(timeout);
    options.heartbeat_freq.get_or_insert(LOOK);
    options.default_database.get_or_insert_with(|| database.to_owned());
    Ok(options)
}

fn listed(storage: &Storage) -> ClientOptions {
    let mut options = ClientOptions::default();
    options.hosts = storage
        .mongo_hosts
        .iter()
        .map(|node| ServerAddress::Tcp { host: node.host.clone(), port: node.port })
        .collect();
    options.repl_set_name.clone_from(&storage.mongo_replica_set);
    if let (Some(user), Some(password)) = (&storage.mongo_user, &storage.mongo_password) {
        options.credential = Some(
            Credential::builder()
                .username(user.clone())
                .password(password.expose().to_owned())
                .source(storage.mongo_auth_source.clone())
                .build(),
        );
    }
    options
}

/// TLS as the connection string says, else as the settings do; a file it doesn't name is that of the settings.
fn tls(given: Option<Tls>, storage: &Storage) -> Result<Option<Tls>, Error> {
    let mut tls = match (given, storage.mongo_tls) {
        (Some(Tls::Disabled), true) => {
            let message = "MONGO_DB_URI switches TLS off while MONGO_DB_TLS is on; keep one of the two";
            return Err(io::Error::other(message).into());
        }
        (Some(Tls::Enabled(tls)), _) => tls,
        (None, true) => TlsOptions::default(),
        (given, false) => return Ok(given),
    };
    if tls.ca_file_path.is_none() {
        tls.ca_file_path.clone_from(&storage.mongo_tls_ca_file);
    }
    if tls.cert_key_file_path.is_none() {
        tls.cert_key_file_path.clone_from(&storage.mongo_tls_client_file);
    }
    Ok(Some(Tls::Enabled(tls)))
}

/// What there may be to look at when no connection came about with these settings. Of a server that was never reached,
/// only the text tells why.
pub(super) fn advice(cause: &Error, storage: &Storage) -> Option<&'static str> {
    let text = cause.to_string();
    if matches!(*cause.kind, ErrorKind::Authentication { .. }) {
        return Some("see MONGO_DB_USER, MONGO_DB_PASSWORD and MONGO_DB_AUTH_SOURCE");
    }
    if text.to_ascii_lowercase().contains("certificate") {
        return Some("see MONGO_DB_TLS_CA_FILE and MONGO_DB_TLS_CERT_KEY_FILE");
    }
    if text.contains("refused") {
        return None;
    }
    if storage.mongo_tls {
        return Some("MONGO_DB_TLS is on: the server must speak TLS");
    }
    text.contains("end of file").then_some("if the server wants TLS, set MONGO_DB_TLS")
}
