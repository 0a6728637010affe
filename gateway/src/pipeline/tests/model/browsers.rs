//! What browsers are told (CORS).

use doorman_crds::DoormanApiSpec;

use super::super::stage::{Ask, Seen};
use super::Model;
use super::access::endpoint;

impl Model<'_> {
    /// What a browser may do.
    pub(super) fn preflight(&self, ask: &Ask, path: &[&str], seen: &mut Seen) {
        seen.status = 204;
        let Ok(api) = self.find(path) else { return };
        let methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"];
        if self.world.options.strict_options
            && !methods.into_iter().any(|method| endpoint(api, method, &path[2..]).is_some())
        {
            seen.status = 405;
            return self.hit("a strict preflight of nothing");
        }
        self.hit("a preflight");
        seen.cors = cors(api, ask);
        let spec = api.cors.clone().unwrap_or_default();
        let all = "GET, POST, PUT, DELETE, PATCH, HEAD, OPTIONS";
        if ask.get("access-control-request-method").is_some() {
            let mut methods: Vec<String> = Vec::new();
            for method in
                spec.allow_methods.iter().flatten().map(|method| method.to_uppercase()).chain(["OPTIONS".to_owned()])
            {
                if !methods.contains(&method) {
                    methods.push(method);
                }
            }
            let is_any = spec.allow_methods.as_ref().is_none_or(|methods| methods.iter().any(|method| method == "*"));
            let methods = if is_any { all.to_owned() } else { methods.join(", ") };
            seen.cors.push(("access-control-allow-methods".to_owned(), methods));
        }
        if let Some(asked) = ask.get("access-control-request-headers") {
            let any = if spec.allow_credentials == Some(true) { asked } else { "*" };
            let listed = spec.allow_headers.filter(|names| !names.iter().any(|name| name == "*"));
            let headers = listed.map_or(any.to_owned(), |names| names.join(", "));
            seen.cors.push(("access-control-allow-headers".to_owned(), headers));
        }
        seen.cors.sort();
    }
}

/// What an answer says to a browser, sorted.
pub(super) fn cors(api: &DoormanApiSpec, ask: &Ask) -> Vec<(String, String)> {
    let Some(origin) = ask.get("origin") else { return Vec::new() };
    let spec = api.cors.clone().unwrap_or_default();
    let mut told = vec![("vary".to_owned(), "Origin".to_owned())];
    let is_allowed = spec.allow_origins.is_none_or(|origins| {
        origins.iter().any(|allowed| match allowed.split_once("*.") {
            Some((scheme, domain)) => origin.starts_with(scheme) && origin.ends_with(&format!(".{domain}")),
            None => allowed == "*" || allowed == origin,
        })
    });
    if is_allowed {
        told.push(("access-control-allow-origin".to_owned(), origin.to_owned()));
        if spec.allow_credentials == Some(true) {
            told.push(("access-control-allow-credentials".to_owned(), "true".to_owned()));
        }
        if let Some(exposed) = spec.expose_headers.filter(|names| !names.is_empty()) {
            told.push(("access-control-expose-headers".to_owned(), exposed.join(", ")));
        }
    }
    told.sort();
    told
}
