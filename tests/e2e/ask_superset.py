"""Makes Superset connect to a database, look at what it has and draw charts; prints what it said as JSON.

    python ask_superset.py SQLALCHEMY_URI TABLE FROM TO

Run by Superset's own Python, with `SUPERSET_CONFIG_PATH` set and its own database migrated."""

import json
import sys

from superset.app import create_app

uri, table, begin, end = sys.argv[1:]
app = create_app()
with app.app_context():
    from superset.extensions import appbuilder

    appbuilder.sm.sync_role_definitions()
    appbuilder.sm.add_user("admin", "an", "admin", "admin@example.com", appbuilder.sm.find_role("Admin"), password="admin")
client = app.test_client()
login = {"username": "admin", "password": "admin", "provider": "db", "refresh": False}
headers = {"Authorization": "Bearer " + client.post("/api/v1/security/login", json=login).json["access_token"]}


def ask(method, path, body=None):
    response = client.open(path, method=method, json=body, headers=headers)
    assert response.status_code < 300, (path, response.status_code, response.get_data(as_text=True))
    return response.json


ask("POST", "/api/v1/database/test_connection/", {"sqlalchemy_uri": uri, "database_name": "wattlake"})
database = ask("POST", "/api/v1/database/", {"sqlalchemy_uri": uri, "database_name": "wattlake"})["id"]
dataset = ask("POST", "/api/v1/dataset/", {"database": database, "schema": "public", "table_name": table})["id"]


def chart(grain):
    """A line chart of the mean by metric and time."""
    axis = {"timeGrain": grain, "columnType": "BASE_AXIS", "sqlExpression": "timestamp", "label": "timestamp", "expressionType": "SQL"}
    query = {
        "columns": [axis, "metric"],
        "metrics": [{"expressionType": "SQL", "sqlExpression": "avg(value)", "label": "mean"}],
        "filters": [{"col": "timestamp", "op": "TEMPORAL_RANGE", "val": f"{begin} : {end}"}, {"col": "quality", "op": "IN", "val": ["good"]}],
        "orderby": [["mean", False]],
        "row_limit": 1000,
    }
    body = {"datasource": {"id": dataset, "type": "table"}, "queries": [query], "result_format": "json", "result_type": "full", "force": True}
    return ask("POST", "/api/v1/chart/data", body)["result"][0]["data"]


answers = {
    "schemas": ask("GET", f"/api/v1/database/{database}/schemas/")["result"],
    "tables": [found["value"] for found in ask("GET", f"/api/v1/database/{database}/tables/?q=(schema_name:public)")["result"]],
    "columns": [
        [column["column_name"], column["type"], column["is_dttm"]]
        for column in ask("GET", f"/api/v1/dataset/{dataset}")["result"]["columns"]
    ],
    "charts": {str(grain): chart(grain) for grain in ["PT15M", "PT1H", "P1D", "P1W", "P1M", "P3M", "P1Y", None]},
}
print(json.dumps(answers))
