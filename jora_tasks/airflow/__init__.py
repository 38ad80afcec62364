"""What Airflow runs: the DAGs' operator, assets and forms, and a local Airflow of one's own.

`local`, `client`, `environment`, `processes`, `components`, `job` and `keeper` do not import Airflow: they
start it, stop it and talk to it from outside, or work on when it is gone.
"""
