# Two commands do everything on a fresh Debian or Ubuntu machine with Rust and Go: `make demo` and `make test`.
TARGET := x86_64-unknown-linux-musl
RELEASE := target/$(TARGET)/release
SOURCES := $(shell find crates -name '*.rs' -o -name 'Cargo.toml') Cargo.toml Cargo.lock rust-toolchain.toml

.PHONY: demo demo-down test fuzz bench bench-tools lint setup build image images clean

demo: setup images ## Play the product's story on this machine; KEEP=1 leaves it running
	cargo run --locked -p tailwharf-demo -- up

demo-down: ## Remove every trace of the demo
	cargo run --locked -p tailwharf-demo -- down

test: ## Every test; what this machine cannot run is reported as ignored, with the reason
	@./setup/test.sh

fuzz: ## All decoders, and what peers may send, for SECONDS each; needs a nightly compiler
	@./setup/fuzz.sh $(or $(SECONDS),60)

bench: setup images bench-tools ## The measured promises; AREA=node runs one area, AREA=node.tun a part of it
	cargo run --locked -p tailwharf-bench -- $(AREA)

lint: ## Formatting, lints, purity, generated files, licences
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo xtask purity
	cargo xtask generate --check
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --log-level error check bans licenses sources; \
	else echo "lint: licences were not checked; cargo install cargo-deny"; fi

bench-tools: ## The programs that make traffic for the bench
	cargo build --profile perf --locked --target $(TARGET) -p tailwharf-bench -p tailwharf-load --bin flood --bin crowd --bin gate --bin gets --bin tailwharf-load

setup: ## Packages, official peers, Kubernetes
	@./setup/packages.sh
	@./setup/peers.sh
	@./cluster/build-kube.sh

build: $(RELEASE)/tailwharf ## The static release binary

image: build/tailwharf.tar ## The image archive of the release binary

images: image build/nginx.tar build/official-operator.tar ## That, the servers that demo and tests expose, and the official operator

$(RELEASE)/tailwharf: $(SOURCES)
	cargo build --release --locked --target $(TARGET) -p tailwharf -p tailwharf-testkit
	@touch $@

build/tailwharf.tar: $(RELEASE)/tailwharf images/build.sh images/oci-image.py
	./images/build.sh $@

build/nginx.tar: $(RELEASE)/tailwharf images/servers.sh images/oci-image.py
	./images/servers.sh build

build/official-operator.tar: images/official.sh images/oci-image.py setup/peers.sh
	./images/official.sh build

clean:
	cargo clean
	rm -rf build
