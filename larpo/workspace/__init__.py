"""This folder under Git and DVC: the only room that knows them."""
