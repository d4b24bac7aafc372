/* grant_serving */ SELECT taskpass_grant_serving($1)
