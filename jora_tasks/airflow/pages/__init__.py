"""Pages within Airflow: what a run made, the lines of adapters, promotion by hand.

A FastAPI app that the API server mounts at ``/jora``; HTML from templates, no JavaScript needed. Every
page asks Airflow's own permissions; nothing is shown without a login.
"""
