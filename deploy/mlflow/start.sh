#!/bin/sh
# MLflow's server. Passwords come from files in $SECRETS (or are in the environment already); none is an argument.
# Wanted: PGHOST PGUSER PGDATABASE, ARTIFACTS (s3://...), ALLOWED_HOSTS; optional: MLFLOW_S3_ENDPOINT_URL, PORT, HOST.
set -eu
SECRETS=${SECRETS:-/run/secrets}
take() { # take VARIABLE FILE: the file's content, unless the variable is set
    eval "value=\${$1:-}"
    if [ -z "$value" ]; then
        [ -r "$SECRETS/$2" ] || { echo "start.sh: neither $1 nor $SECRETS/$2" >&2; exit 2; }
        value=$(cat "$SECRETS/$2")
    fi
    export "$1=$value"
}
take PGPASSWORD postgres_password
take MLFLOW_AUTH_ADMIN_PASSWORD mlflow_admin_password
take MLFLOW_FLASK_SERVER_SECRET_KEY mlflow_secret_key
take AWS_ACCESS_KEY_ID s3_access_key
take AWS_SECRET_ACCESS_KEY s3_secret_key
export MLFLOW_AUTH_ADMIN_USERNAME="${MLFLOW_AUTH_ADMIN_USERNAME:-m2can}"
export MLFLOW_AUTH_CONFIG_PATH="${MLFLOW_AUTH_CONFIG_PATH:-$(dirname "$0")/basic_auth.ini}"
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
export MLFLOW_BACKEND_STORE_URI="${MLFLOW_BACKEND_STORE_URI:-postgresql+psycopg2://}" # the driver reads PGHOST and the others
exec mlflow server --app-name basic-auth --host "${HOST:-0.0.0.0}" --port "${PORT:-5000}" \
    --artifacts-destination "$ARTIFACTS" --serve-artifacts --allowed-hosts "$ALLOWED_HOSTS" --workers "${WORKERS:-2}"
