# Images by digest: a tag can be moved to other contents. To renew one:
# `docker buildx imagetools inspect IMAGE:TAG --format '{{.Manifest.Digest}}'`.

# Debian 12 on both sides: the binary links the C library it was built against.
FROM rust:1.95-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082 AS build
WORKDIR /build
COPY . .
# The caches stay out of the image, so the binary is copied out in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/build/target,sharing=locked \
    cargo build --release --locked --bin taskpass \
    && install -D --strip target/release/taskpass /out/taskpass \
    && install -d /out/state

# No shell, no package manager; the C library and the root certificates.
FROM gcr.io/distroless/cc-debian12:nonroot@sha256:9dac0a79194e45a7da0158a9c6da57b217585af0786db3845d1f0ec1a0dd182f
LABEL org.opencontainers.image.title="Taskpass" \
      org.opencontainers.image.description="A just-in-time credential broker: policy decides before the credential exists" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/taskpass /usr/local/bin/taskpass
# A new named volume takes its owner from here. It holds the last checkpoint, by
# which a rewound database is noticed, and the store where that is SQLite.
COPY --from=build --chown=65532:65532 /out/state /var/lib/taskpass
# A number, so that an orchestrator can see that it is not root.
USER 65532:65532
WORKDIR /var/lib/taskpass
ENV TASKPASS_CONFIG=/etc/taskpass/taskpass.toml
EXPOSE 8443
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["/usr/local/bin/taskpass", "health", "--url", "http://127.0.0.1:8443/livez"]
ENTRYPOINT ["/usr/local/bin/taskpass"]
CMD ["serve"]
