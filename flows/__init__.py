"""Order only: which stage follows which, on which worker; and the command line."""
