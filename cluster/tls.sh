#!/usr/bin/env bash
# Certificates for TLS between Ray's processes, from an authority of one's own.
#
#   cluster/tls.sh ca DIR                 the authority, once:            DIR/ca.key (keep it secret), DIR/ca.crt
#   cluster/tls.sh cert DIR OUT NAME...   a node's certificate, for its host names and addresses: OUT/tls.key, OUT/tls.crt
#
# Every process of the cluster, drivers and `ray job submit` too, then runs with
#   RAY_USE_TLS=1 RAY_TLS_SERVER_CERT=OUT/tls.crt RAY_TLS_SERVER_KEY=OUT/tls.key RAY_TLS_CA_CERT=DIR/ca.crt
# Without a certificate of this authority nobody talks to it; with one, the token is still asked for.
set -euo pipefail
umask 077

days_of_authority=3650 days_of_node=365

usage() {
    sed -n '3,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

make_authority() {
    mkdir -p "$1"
    if [ -e "$1/ca.key" ]; then
        echo "tls.sh: $1/ca.key is there already; all certificates of it would become worthless" >&2
        exit 1
    fi
    openssl req -x509 -newkey rsa:4096 -sha256 -nodes -days "$days_of_authority" -subj "/CN=clara ray authority" \
        -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -keyout "$1/ca.key" -out "$1/ca.crt" 2> /dev/null
}

make_certificate() {
    local authority=$1 out=$2 names="" name
    shift 2
    for name in "$@" localhost 127.0.0.1; do
        case $name in
            *:*) names+=",IP:$name" ;;
            *[!0-9.]*) names+=",DNS:$name" ;;
            *) names+=",IP:$name" ;;
        esac
    done
    mkdir -p "$out"
    openssl req -new -newkey rsa:2048 -sha256 -nodes -subj "/CN=clara ray node" \
        -keyout "$out/tls.key" -out "$out/tls.csr" 2> /dev/null
    openssl x509 -req -sha256 -days "$days_of_node" -in "$out/tls.csr" -CA "$authority/ca.crt" -CAkey "$authority/ca.key" \
        -set_serial "0x$(openssl rand -hex 16)" -out "$out/tls.crt" 2> /dev/null \
        -extfile <(printf '%s\n' "basicConstraints=critical,CA:FALSE" "keyUsage=critical,digitalSignature,keyEncipherment" \
            "extendedKeyUsage=serverAuth,clientAuth" "subjectAltName=${names#,}")
    rm "$out/tls.csr"
}

case ${1:-} in
    ca) [ $# -eq 2 ] || usage; make_authority "$2" ;;
    cert) [ $# -ge 4 ] || usage; make_certificate "$2" "$3" "${@:4}" ;;
    *) usage ;;
esac
