//! Answers that the proxy gives itself: short, in HTML for browsers and in plain text for everybody else.

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use http::{Response, StatusCode};

use super::body::Reply;

/// A page with a heading, which is the status, and a sentence.
#[must_use]
pub(super) fn page(status: StatusCode, sentence: &str, asked: &HeaderMap) -> Response<Reply> {
    let accept = asked.get(ACCEPT).map_or(&b""[..], HeaderValue::as_bytes);
    let html = accept.windows(9).any(|word| word == b"text/html");
    let heading = status.canonical_reason().unwrap_or_default();
    let code = status.as_u16();
    let (kind, text) = if html {
        let sentence = escape(sentence);
        let page = format!(
            "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{code} {heading}</title>\n<h1>{code} {heading}</h1>\n<p>{sentence}</p>\n</html>\n"
        );
        ("text/html; charset=utf-8", page)
    } else {
        (
            "text/plain; charset=utf-8",
            format!("{code} {heading}\n{sentence}\n"),
        )
    };
    let mut response = Response::new(Reply::page(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Sends the client to another address for good.
#[must_use]
pub(super) fn moved(to: &str, asked: &HeaderMap) -> Response<Reply> {
    match HeaderValue::from_str(to) {
        Ok(location) => {
            let mut response = Response::new(Reply::page(Bytes::new()));
            *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
            response.headers_mut().insert(LOCATION, location);
            response
        }
        Err(_) => page(
            StatusCode::BAD_REQUEST,
            "The address cannot be redirected.",
            asked,
        ),
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn text(accept: Option<&str>) -> String {
        let mut asked = HeaderMap::new();
        if let Some(accept) = accept {
            asked.insert(ACCEPT, accept.parse().unwrap());
        }
        let response = page(StatusCode::SERVICE_UNAVAILABLE, "No <endpoint> is ready.", &asked);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.into()).unwrap()
    }

    #[tokio::test]
    async fn browsers_get_html_and_others_text() {
        assert_eq!(
            text(None).await,
            "503 Service Unavailable\nNo <endpoint> is ready.\n"
        );
        let html = text(Some("text/html,application/xhtml+xml;q=0.9")).await;
        assert!(html.contains("<p>No &lt;endpoint&gt; is ready.</p>"), "{html}");
    }
}
