//! Changes to requests and answers that an API asks for (reference: gateway behaviour 17).
//!
//! In: typed changes, compiled with the definition, and headers, a query or a body. Out: the same, changed. What a change
//! is about and is not there is left out; a body that can't be changed as asked is given back with the reason. What no
//! change touches stays byte for byte as it was.

mod body;
mod headers;
mod query;

pub use body::change as change_body;
pub use headers::change as change_headers;
pub use query::change as change_query;
