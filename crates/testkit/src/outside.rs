//! A server of the internet, as clusters and laptops of a lab see it.

use std::process::{Child, Command, Stdio};

use anyhow::Result;

use crate::process::run;

/// Its address, which this machine has as long as the server runs.
const ADDRESS: &str = "198.51.100.7";
const PORT: u16 = 8_088;
/// Answers each request with the address from which it came.
const SOURCE: &str = "import http.server,sys\nclass H(http.server.BaseHTTPRequestHandler):\n def do_GET(s):\n  b=s.client_address[0].encode();s.send_response(200);s.send_header('content-length',str(len(b)));s.end_headers();s.wfile.write(b)\n def log_message(s,*a): pass\nhttp.server.ThreadingHTTPServer((sys.argv[1],int(sys.argv[2])),H).serve_forever()\n";

/// The server. It tells each client from which address it came.
#[derive(Debug)]
pub struct Outside(Child);

impl Outside {
    /// Starts it.
    ///
    /// # Errors
    /// When the address cannot be set or the server cannot be started.
    pub fn start() -> Result<Self> {
        run(Command::new("ip").args(["addr", "replace", &format!("{ADDRESS}/32"), "dev", "lo"]))?;
        let child = Command::new("python3")
            .args(["-c", SOURCE, ADDRESS, &PORT.to_string()])
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }

    /// Where it answers.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{ADDRESS}:{PORT}/")
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // It is ours, and has ended already if these fail.
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = run(Command::new("ip").args(["addr", "del", &format!("{ADDRESS}/32"), "dev", "lo"]));
    }
}
