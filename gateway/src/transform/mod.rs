//! Changes to requests and answers that an API asks for (reference: gateway behaviour 17).
//!
//! In: typed changes, compiled with the definition, and headers, a query or a body. Out: the same, changed. A change of
//! what is not there does nothing; a body that can't be changed as asked is an error with the reason. What no change
//! touches stays as it was written.

mod body;
mod headers;
mod query;

pub use body::change as change_body;
pub use headers::change as change_headers;
pub use query::change as change_query;
