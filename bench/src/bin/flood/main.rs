//! Makes traffic and measures it, for the bench: TCP streams, requests, new connections, idle connections, datagrams, and
//! packets through a relay. Prints one JSON object.
//!
//! ```text
//! flood serve ADDRESS                            what the others talk to: TCP and UDP
//! flood stream TO to|from STREAMS SECONDS        bytes carried
//! flood answer TO SECONDS                        round trips, one after the other
//! flood connect TO AT_ONCE SECONDS               connections that the other side closes
//! flood idle TO COUNT                            keeps connections open until it is ended
//! flood datagrams TO SIZE RATE SECONDS           datagrams sent and received
//! flood web-serve ADDRESS NAME                   a web server with a small page and a large one
//! flood web-follow TO NAME ROOT                  when who answers, until it is ended
//! flood relay HOST:PORT NAME PAIRS WINDOW SECONDS KEY...   packets through a relay; two node keys a pair
//! ```

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "what it prints is its result")]

mod datagrams;
mod relay;
mod serve;
mod streams;
mod web;

use std::str::FromStr;

use anyhow::{Context, Result, bail};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut words = Words(std::env::args().skip(1).collect::<Vec<_>>().into_iter());
    let verb: String = words.next("verb")?;
    let result = match verb.as_str() {
        "serve" => return serve::run(words.next("address")?).await,
        "stream" => {
            let (to, way): (_, String) = (words.next("address")?, words.next("way")?);
            streams::stream(to, &way, words.next("streams")?, words.next("seconds")?).await?
        }
        "answer" => streams::answer(words.next("address")?, words.next("seconds")?).await?,
        "connect" => {
            streams::connect(
                words.next("address")?,
                words.next("at once")?,
                words.next("seconds")?,
            )
            .await?
        }
        "idle" => return streams::idle(words.next("address")?, words.next("count")?).await,
        "datagrams" => {
            let to = words.next("address")?;
            datagrams::send(
                to,
                words.next("size")?,
                words.next("rate")?,
                words.next("seconds")?,
            )
            .await?
        }
        "web-serve" => return web::serve(words.next("address")?, &words.next::<String>("name")?).await,
        "web-follow" => return web::follow(words.web_server()?).await,
        "relay" => {
            let load = relay::Load {
                relay: words.next("relay")?,
                name: words.next("name")?,
                pairs: words.next("pairs")?,
                window: words.next("window")?,
                seconds: words.next("seconds")?,
                keys: words.0.collect(),
            };
            relay::run(load).await?
        }
        other => bail!("there is no verb {other}"),
    };
    println!("{result}");
    Ok(())
}

/// The words of the command line.
struct Words(std::vec::IntoIter<String>);

impl Words {
    fn web_server(&mut self) -> Result<web::Server> {
        Ok(web::Server {
            address: self.next("address")?,
            name: self.next("name")?,
            root: self.next("root")?,
        })
    }

    fn next<T>(&mut self, what: &str) -> Result<T>
    where
        T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
    {
        let word = self.0.next().with_context(|| format!("{what} is missing"))?;
        word.parse().with_context(|| format!("{what} {word:?}"))
    }
}
