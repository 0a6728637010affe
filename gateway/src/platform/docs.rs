//! Pages that show the platform API in a browser: `/platform/docs` and `/platform/redoc` (reference: platform API 1.1, 1.4).
//!
//! The pages are static; the programs that draw them come from cdn.jsdelivr.net in one exact version each, which browsers
//! check by hash. Their policy allows that, and what these programs do with a page, and nothing else. Without a way
//! to that host the pages stay empty; the description itself is `/platform/openapi.json`.

use axum::{Router, response::IntoResponse, routing::get};
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};

use super::Platform;

// The hashes are those of the files in the npm packages `swagger-ui-dist` and `redoc` (SHA-384, base64).
macro_rules! swagger_ui {
    () => {
        "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5.35.0/"
    };
}
macro_rules! redoc {
    () => {
        "https://cdn.jsdelivr.net/npm/redoc@2.5.4/"
    };
}

/// What starts Swagger UI; the policy allows it by its hash.
macro_rules! starter {
    () => {
        r##"SwaggerUIBundle({url: "/platform/openapi.json", dom_id: "#ui", deepLinking: true, validatorUrl: null, oauth2RedirectUrl: window.location.origin + "/platform/docs/oauth2-redirect"});"##
    };
}

macro_rules! page {
    ($($part:expr),*) => {
        concat!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n",
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>Doorman platform API</title>\n",
            $($part,)*
            "\n</body>\n</html>\n"
        )
    };
}

macro_rules! script {
    ($base:expr, $file:literal, $hash:literal) => {
        concat!(
            "<script src=\"",
            $base,
            $file,
            "\" integrity=\"sha384-",
            $hash,
            "\" crossorigin=\"anonymous\"></script>\n"
        )
    };
}

const SWAGGER_UI: &str = page!(
    "<link rel=\"stylesheet\" href=\"",
    swagger_ui!(),
    "swagger-ui.css\" integrity=\"sha384-WlYgdmXYOOBWL5apwjDEZwN+U3HmXSSu5R6V5aGxEcf7z+KuRNwBhoxKVN1i3D5I\" ",
    "crossorigin=\"anonymous\">\n</head>\n<body>\n<div id=\"ui\"></div>\n",
    script!(swagger_ui!(), "swagger-ui-bundle.js", "gjRm0bEPMeTmMh5jT2cHccIwCUZSTd8YC+j0d0sXw0MdGEfScduGpSyF3ZSSLkX9"),
    "<script>",
    starter!(),
    "</script>"
);
const OAUTH2_REDIRECT: &str = page!(
    "</head>\n<body>\n",
    script!(swagger_ui!(), "oauth2-redirect.js", "XuY48ztmqRBrZqX+bDrPUqkTumNohu9Bl+yztOEp/hDTS5qXIApmbiD04MrTFpjk")
);
const REDOC: &str = page!(
    "</head>\n<body>\n<redoc spec-url=\"/platform/openapi.json\"></redoc>\n",
    script!(
        redoc!(),
        "bundles/redoc.standalone.js",
        "w447zOpYfw/1Tv/5AK9NfHTlQIqE3RVR6KY62jCyy9zNDgO64cMwGGP1Fj0zJVf5"
    )
);

/// Scripts only of the two packages, and the one that starts Swagger UI; Redoc searches in a worker made of a blob.
const POLICY: &str = concat!(
    "default-src 'none'; base-uri 'none'; form-action 'self'; connect-src 'self'; worker-src blob:; frame-ancestors *; ",
    "script-src ",
    swagger_ui!(),
    " ",
    redoc!(),
    " 'sha256-7IdQssp0T+1jinWd4wJPsEvlJg56zdcedMpkGhe8QGE='; ",
    "style-src https://cdn.jsdelivr.net 'unsafe-inline'; ",
    "img-src 'self' data: https://cdn.jsdelivr.net; font-src data: https://cdn.jsdelivr.net",
);

pub(super) fn routes() -> Router<Platform> {
    let page = |text: &'static str| {
        get(async move || {
            ([(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, POLICY)], text).into_response()
        })
    };
    Router::new()
        .route("/platform/docs", page(SWAGGER_UI))
        .route("/platform/docs/oauth2-redirect", page(OAUTH2_REDIRECT))
        .route("/platform/redoc", page(REDOC))
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn the_policy_allows_the_one_script_on_the_pages_themselves() {
        let hash = BASE64_STANDARD.encode(Sha256::digest(starter!()));
        assert!(POLICY.contains(&format!("'sha256-{hash}'")), "{hash}");
    }

    #[test]
    fn everything_from_elsewhere_has_a_version_and_a_hash() {
        for page in [SWAGGER_UI, OAUTH2_REDIRECT, REDOC] {
            let tags: Vec<&str> = page.split('<').filter(|tag| tag.contains("https://")).collect();
            assert!(!tags.is_empty());
            for tag in tags {
                let hash = tag.split("integrity=\"sha384-").nth(1).and_then(|rest| rest.split('"').next());
                let bytes = BASE64_STANDARD.decode(hash.unwrap_or_else(|| panic!("{tag}"))).unwrap();
                assert_eq!(bytes.len(), 48, "{tag}");
                assert!(tag.contains(swagger_ui!()) || tag.contains(redoc!()), "{tag}");
                assert!(tag.contains("crossorigin=\"anonymous\""), "{tag}");
            }
        }
    }
}
